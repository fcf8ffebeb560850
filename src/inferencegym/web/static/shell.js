// What surrounds every page: navigation, theme, banners, the key that a server may ask for, and the router over real paths.
import { ApiError, key } from "./api.js";
import { fill, h } from "./dom.js";

const PAGES = [
  { name: "arena", title: "Arena", what: "Policies side by side on one task" },
  { name: "episode", title: "Episode", what: "One policy, decision by decision" },
  { name: "runtime", title: "Runtime", what: "The gateway's live traffic" },
  { name: "workloads", title: "Workloads", what: "What traffic looks like" },
  { name: "leaderboard", title: "Leaderboard", what: "Every policy on every task" },
];
//: An episode is a run of the Arena, seen from closer.
const SECTION = { episode: "arena" };
const THEMES = ["auto", "light", "dark"];
const THEME = "inferencegym.theme";

const top = document.getElementById("top");
const banners = document.getElementById("banners");
const main = document.getElementById("main");
const spoken = h("div", { class: "sr", "aria-live": "polite" });
let about = null;
let unmount = null;
let turn = 0;

begin();

async function begin() {
  document.body.append(spoken);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  applyTheme(theme());
  addEventListener("popstate", show);
  addEventListener("needs-key", () => askKey("The server did not accept the key."));
  document.addEventListener("click", follow);
  new ResizeObserver(() => document.documentElement.style.setProperty("--banners", `${banners.offsetHeight}px`)).observe(banners);
  loading("InferenceGym", "Asking the server what there is…");
  await know();
}

/** What stands there before a page has come: its heading, and that it is on its way. Whatever fills the place later takes it away. */
function loading(title, text, place = main) {
  fill(place, h("div", { "aria-busy": "true" }, h("h1", null, title), h("p", { class: "loading", role: "status" }, text)));
}

/** Ask the server what it is; say what to do where it does not answer. */
async function know() {
  try {
    const response = await fetch("about.json");
    if (!response.ok) throw new ApiError(response.status, `The server answered ${response.status}.`);
    about = await response.json();
  } catch {
    fill(main, empty("The server cannot be reached", "Is it still running? Start it again with inferencegym env or inferencegym serve.", { label: "Try again", action: know }));
    return;
  }
  header();
  if (about.needs_key && !key.get()) {
    loading(here()[0].toUpperCase() + here().slice(1), "Waiting for a key…");
    askKey("This server asks for an API key.");
  }
  else await show();
}

function here() {
  const base = new URL(document.baseURI).pathname;
  return location.pathname.slice(base.length).replace(/\/$/, "") || "arena";
}

function served(name) {
  return about.sections.includes(SECTION[name] ?? name);
}

function header() {
  const links = PAGES.filter(({ name }) => served(name)).map(({ name, title, what }) =>
    h("li", null, h("a", { href: name, "data-page": name, title: what }, title)));
  const chooser = h("select", { id: "theme", "aria-label": "Colours", onchange: (event) => applyTheme(event.target.value) },
    THEMES.map((name) => h("option", { value: name, selected: name === theme() }, { auto: "Auto", light: "Light", dark: "Dark" }[name])));
  fill(top, h("div", { class: "inside" },
    h("a", { class: "brand", href: "./" }, h("img", { src: "static/icon.svg", alt: "" }), "InferenceGym"),
    h("nav", { "aria-label": "Pages" }, h("ul", null, links)),
    h("div", { class: "end" }, h("span", null, `v${about.version}`), chooser)));
}

function theme() {
  const kept = localStorage.getItem(THEME);
  return THEMES.includes(kept) ? kept : "auto";
}

function applyTheme(name) {
  if (name === "auto") {
    localStorage.removeItem(THEME);
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem(THEME, name);
    document.documentElement.dataset.theme = name;
  }
  dispatchEvent(new Event("themechange"));
}

/** Links to pages stay in this document, unless the reader wants a tab of their own. */
function follow(event) {
  const link = event.target.closest?.("a[data-page]");
  if (!link || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const url = new URL(link.href);
  navigate(link.dataset.page, url.searchParams);
}

/** The address of a page. `params`: an object or URLSearchParams. */
export function address(page, params = null) {
  const query = new URLSearchParams(params ?? undefined).toString().replaceAll("%2C", ",");
  return query ? `${page}?${query}` : page;
}

function navigate(page, params = null) {
  history.pushState(null, "", address(page, params));
  show();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
}

async function show() {
  const mine = ++turn;
  const page = PAGES.find(({ name }) => name === here()) ?? PAGES[0];
  for (const link of top.querySelectorAll("a[data-page]")) {
    if (link.dataset.page === page.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave();
  document.title = `${page.title} · InferenceGym`;
  if (!served(page.name)) {
    const why = page.name === "runtime" && about.server === "env" ? "The runtime's page belongs to inferencegym serve; this is inferencegym env." : "This server does not offer it.";
    fill(main, empty(`No ${page.title} here`, why, { label: "Go to the Arena", action: () => navigate("arena") }));
    return;
  }
  const root = h("div", { class: `page-${page.name}` });
  loading(page.title, `Loading: ${page.what.toLowerCase()}…`, root);
  fill(main, root);
  let ended = null;
  try {
    const [module] = await Promise.all([import(`./pages/${page.name}.js`), styled(page.name)]);
    if (mine !== turn) return;
    ended = await module.mount(root, context(page, () => mine === turn));
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof ApiError && error.status === 401) return;
    if (!(error instanceof ApiError)) console.error(error);
    fill(main, empty(`${page.title} could not be shown`, error.message, { label: "Try again", action: show }));
    return;
  }
  if (mine === turn) unmount = ended;
  else ended?.();
}

/** A page's own style sheet, once and for good: its rules name the page. */
function styled(name) {
  const id = `css-${name}`;
  if (document.getElementById(id)) return null;
  return new Promise((resolve) => {
    document.head.append(h("link", { id, rel: "stylesheet", href: `static/pages/${name}.css`, onload: resolve, onerror: resolve }));
  });
}

function leave() {
  const ended = unmount;
  unmount = null;
  ended?.();
  banners.replaceChildren();
}

function context(page, present) {
  return {
    about,
    params: new URLSearchParams(location.search),
    navigate,
    setParams: (params) => present() && history.replaceState(null, "", address(page.name, params)),
    banner: (kind, text, offer) => (present() ? banner(kind, text, offer) : () => {}),
    announce: (text) => (spoken.textContent = text),
    title: (text) => (document.title = text ? `${text} · ${page.title} · InferenceGym` : `${page.title} · InferenceGym`),
  };
}

/** A message across the page. `kind`: info, warn or error. Gives a function that takes it away. */
function banner(kind, text, offer = null) {
  const close = () => node.remove();
  const node = h("div", { class: `banner ${kind}`, role: kind === "error" ? "alert" : null, "data-banner": kind },
    h("span", { class: "text" }, h("span", { class: "kind" }, { info: "", warn: "Note: ", error: "Error: " }[kind]), text),
    offer && h("button", { type: "button", onclick: () => offer.action(close) }, offer.label),
    h("button", { type: "button", class: "plain", "aria-label": "Close this message", onclick: close }, "✕"));
  banners.append(node);
  return close;
}

function empty(title, text, offer) {
  return h("div", { class: "empty" }, h("h1", null, title), h("p", null, text), offer && h("button", { type: "button", class: "primary", onclick: offer.action }, offer.label));
}

/** Ask for the key, keep it for this tab, and show the page anew. */
function askKey(why) {
  if (document.getElementById("key-dialog")) return;
  const field = h("input", { id: "key", type: "password", autocomplete: "off", required: true });
  const dialog = h("dialog", { id: "key-dialog", "aria-labelledby": "key-title" },
    h("form", { class: "field", onsubmit: given },
      h("h2", { id: "key-title" }, about?.server === "serve" ? "Administrator's key" : "API key"),
      h("p", null, why, about?.server === "serve"
        ? [" It takes an administrator's key, one that ", h("code", null, "inferencegym serve key NAME --admin"), " has made. It stays in this tab."]
        : " It is one of the server's --api-keys, and stays in this tab."),
      h("label", { for: "key" }, "Key"), field,
      h("div", { class: "row end" }, h("button", { type: "submit", class: "primary" }, "Use this key"))));
  let used = false;
  function given(event) {
    event.preventDefault();
    used = true;
    key.set(field.value.trim());
    dialog.close();
    show();
  }
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (!used) fill(main, empty("A key is needed", "Without it this server shows nothing.", { label: "Enter the key", action: () => askKey(why) }));
  });
  document.body.append(dialog);
  dialog.showModal();
}
