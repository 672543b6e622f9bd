"""The lab as a picture in text, and what to try in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exeat.appliance.lab.plan import Lab

_PICTURE = """\
  {gw:<9} the gateway node: exeat up            {www:<9} web servers
  203.0.113.2  198.51.100.2  2001:db8:0:1::2    north 203.0.113.10   index. git. api. plain. *.cdn.example.org
     |                                          south 198.51.100.20  *.downloads.example.com
     |   jails: lo only, no way out but exeat      |
     |                                             |
  ===+==================+=== {net} (bridge) ====+==+===============================
                        |                       |
  {dns:<9} 203.0.113.53                    {evil:<9} 198.51.100.66  paste. *.exfil.example.net
  names and traps, every query logged            169.254.169.254 (metadata) and every other address:
                                                 the gateway's default route ends here, logged
"""


def picture(lab: Lab) -> str:
    return _PICTURE.format(**{name: lab.namespace(name) for name in ("gw", "www", "net", "dns", "evil")})


def hints(lab: Lab, *, appliance: bool) -> str:
    """What to try next. Without the appliance: how to start it."""
    if not appliance:
        enter = f"nsenter --net={lab.namespace_path('gw')}"
        return f"  start the appliance   {enter} exeat --config {lab.config} up\n{_logs(lab)}"
    job = f"{lab.job}/ca.pem"
    curl = f"exeat run --project crawler --ro {lab.job} -- curl --cacert {job}"
    return (
        f"  export EXEAT_CONFIG={lab.config}\n"
        f"  allowed       {curl} https://index.example.org/simple/\n"
        f"  asked         {curl} https://downloads.example.com/bytes/1000\n"
        f"  approve it    exeat lease ls    then    exeat lease approve ID\n"
        f"  refused       {curl} https://paste.example.net/\n"
        f"  evidence      exeat ledger tail    exeat ledger verify\n" + _logs(lab)
    )


def _logs(lab: Lab) -> str:
    return f"  other side    tail -f {lab.run_dir}/log/*.jsonl\n  remove it     exeat lab down\n"
