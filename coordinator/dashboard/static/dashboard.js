// Keeps a page up to date: asks for those of its parts that have changed, and changes in them only what differs, so
// that the focus, the selection, what is folded out and how far something is scrolled stay as they are.
"use strict";

const PERIOD_MS = 1000, HIDDEN_MS = 15000, LONGEST_MS = 20000;
const parts = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
const link = document.getElementById("link");
const tags = new Map();
let wait = PERIOD_MS, since = new Date();

function merge(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  mergeAll(old, fresh, 0);
}

// White space between elements is no reason to make them anew.
const told = (node) => [...node.childNodes].filter((one) => one.nodeType !== Node.TEXT_NODE || one.data.trim());

function mergeAll(old, source, kept) {
  const there = told(old).slice(kept), fresh = told(source);
  fresh.forEach((node, at) => (at < there.length ? merge(there[at], node) : old.append(node)));
  there.slice(fresh.length).forEach((node) => node.remove());
}

function show(name, part) {
  const place = parts.get(name), made = document.createElement("template");
  if (!place) return;
  tags.set(name, part.tag);
  made.innerHTML = part.html;
  const heading = place.firstElementChild;
  mergeAll(place, made.content, heading && heading.nodeName === "SUMMARY" ? 1 : 0);
}

async function look() {
  const address = new URL(location.href);
  address.hash = "";
  address.searchParams.set("live", [...tags.values()].join(",") || "-");
  try {
    const answer = await fetch(address, { cache: "no-store", redirect: "error" });
    if (!answer.ok) throw new Error(String(answer.status));
    for (const [name, part] of Object.entries((await answer.json()).parts)) show(name, part);
    wait = PERIOD_MS;
    since = new Date();
    link.textContent = "live";
    link.className = "";
    document.documentElement.dataset.looked = String(Number(document.documentElement.dataset.looked || 0) + 1);
  } catch (error) {
    const why = error.message === "403" ? "open the address that was printed again" : "the dashboard does not answer";
    link.textContent = `${why}: as of ${since.toLocaleTimeString()}`;
    link.className = "lost";
    wait = Math.min(LONGEST_MS, 2 * wait);
  }
  plan();
}

let timer = 0;
function plan() {
  clearTimeout(timer);
  timer = setTimeout(look, document.hidden ? HIDDEN_MS : wait);
}

if (parts.size) {
  document.addEventListener("visibilitychange", () => { if (!document.hidden) plan(); });
  plan();
}
