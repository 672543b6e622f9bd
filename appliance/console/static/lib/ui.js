// One place from which every module takes its tools.
import { Fragment, h, render } from "../vendor/preact.js";
import { useEffect, useMemo, useRef, useState } from "../vendor/hooks.js";
import { batch, computed, effect, signal, untracked, useSignal } from "../vendor/signals.js";
import htm from "../vendor/htm.js";

export const html = htm.bind(h);
export { Fragment, batch, computed, effect, render, signal, untracked, useEffect, useMemo, useRef, useSignal, useState };
