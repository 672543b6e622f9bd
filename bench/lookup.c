/* One name asked of the C library again and again: what a program in a jail waits for an answer.
 *
 * lookup NAME COUNT     asks for that many different names below NAME; prints the microseconds of each
 *                       getaddrinfo(3) and how it ended, a line each
 * lookup NAME until S   asks until there is an address, at most S seconds; prints that line alone
 */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int ask(const char *name)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
	int code = getaddrinfo(name, "443", &hints, &found);
	if (code == 0)
		freeaddrinfo(found);
	return code;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	double began = now_us();
	if (strcmp(argv[2], "until") == 0 && argc == 4) {
		int code;
		do
			code = ask(argv[1]);
		while (code != 0 && now_us() - began < atof(argv[3]) * 1e6);
		printf("%.1f %d\n", now_us() - began, code);
		return 0;
	}
	for (int i = atoi(argv[2]); i > 0; i--) {
		char name[256];
		snprintf(name, sizeof name, "n%d-%d.%s", i, (int)getpid(), argv[1]);
		double before = now_us();
		int code = ask(name);
		printf("%.1f %d\n", now_us() - before, code);
	}
	return 0;
}
