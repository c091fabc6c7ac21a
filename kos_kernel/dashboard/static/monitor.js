// The monitor: a frame of panes, fed by the kernel through the widget's comm and by nothing else.
//
// Rules. It says when it is looked at (in sight, in a page that is in front) and again each LOOK_MS; else the kernel does
// not sample. It asks by number, and takes the answer of that number. It shows for how long there has been no news.

import kit from "./kit.js";
import panes from "./panes.js";

const LOOK_MS = 10_000;
const STALE_MS = 4_000; // without news while it is looked at
const ANSWER_MS = 30_000;
const BROAD_PX = 1080; // of the whole: panes stand side by side

function darkPage() {
  const told = document.body.dataset.jpThemeLight;
  if (told) return told === "false";
  const classes = document.body.classList;
  if (classes.contains("vscode-dark") || classes.contains("theme-dark")) return true;
  if (classes.contains("vscode-light") || classes.contains("theme-light")) return false;
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function render({ model, el: host }) {
  performance.mark("kos-monitor-begins");
  const view = kit.newId("view");
  const waiting = new Map(); // number -> {resolve, reject}
  const cleanups = [];
  let number = 0;
  let lookedAt = false;
  let heard = 0; // when the last news came (ms)

  const root = kit.el("section", { class: "kos-monitor", "data-lm-suppress-shortcuts": "true", "aria-label": "KOS monitor" });
  const light = kit.el("span", { class: "kos-live", role: "status" });
  const title = kit.el("h2", {}, "KOS");
  const who = kit.el("span", { class: "kos-small" });
  const trouble = kit.el("p", { class: "kos-trouble", role: "alert", hidden: true });
  const toast = kit.el("p", { class: "kos-toast", role: "status" });
  const grid = kit.el("div", { class: "kos-grid" });
  root.append(kit.el("header", {}, title, who, light), trouble, grid, toast);
  let silence;
  root.say = (text, bad = false) => {
    kit.say(toast, text);
    toast.classList.toggle("bad", bad);
    toast.classList.add("shown");
    clearTimeout(silence);
    silence = setTimeout(() => toast.classList.remove("shown"), bad ? 10_000 : 4_000);
  };

  function ask(pane, what, message) {
    const mine = ++number;
    model.send({ kind: "ask", view, number: mine, pane, what, message });
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => {
        waiting.delete(mine);
        reject(new Error("The kernel did not answer; it may be busy."));
      }, ANSWER_MS);
      waiting.set(mine, { resolve, reject, late });
    });
  }

  const role = model.get("allowed");
  const mounted = panes.map((pane) => {
    const made = pane.mount({ ask, root, role });
    const box = kit.el("section", { class: `kos-pane kos-pane-${pane.name}`, "aria-label": pane.title });
    if (!pane.bare) {
      made.count = kit.el("span", { class: "kos-small" });
      box.append(kit.el("div", { class: "kos-panehead" }, kit.el("h3", {}, pane.title), made.count, kit.el("div", { class: "kos-tools" }, ...(made.tools ?? []))));
    }
    box.append(made.node);
    grid.append(box);
    if (made.resize) {
      const sizes = new ResizeObserver(([entry]) => {
        const narrow = entry.contentRect.width < pane.narrow;
        box.classList.toggle("narrow", narrow);
        made.resize(narrow);
      });
      sizes.observe(box);
      cleanups.push(() => sizes.disconnect());
    }
    return { ...pane, ...made, made, box };
  });

  function take(news) {
    heard = performance.now();
    kit.say(title, `KOS · ${news.cluster || "no cluster"}`);
    kit.say(who, news.identity ? `${news.identity}, ${news.role}` : "");
    kit.say(trouble, news.trouble);
    trouble.hidden = !news.trouble;
    kit.mark(root, "data-trouble", news.trouble ? "true" : null);
    for (const pane of mounted) {
      if (news.panes[pane.name]) pane.made.update(news.panes[pane.name]);
      pane.box.hidden = Boolean(pane.made.empty?.());
      if (pane.made.count && pane.made.note) kit.say(pane.made.count, pane.made.note());
    }
    kit.mark(root, "data-at", news.at_s);
    showLife();
  }

  function showLife() {
    const silent = performance.now() - heard;
    const stale = lookedAt && silent > STALE_MS;
    kit.mark(light, "data-life", stale ? "stale" : lookedAt ? "live" : "paused");
    kit.say(light, stale ? `no news for ${kit.duration(silent / 1000)}` : lookedAt ? "live" : "paused");
  }

  function message(content) {
    if (content.kind === "news" && (content.full || heard)) take(content);
    if (content.kind === "answer" && content.view === view) {
      const asked = waiting.get(content.number);
      if (!asked) return;
      waiting.delete(content.number);
      clearTimeout(asked.late);
      if (content.error) asked.reject(new Error(content.error));
      else asked.resolve(content.value);
    }
  }
  model.on("msg:custom", message);
  cleanups.push(() => model.off("msg:custom", message));

  // ---- who looks

  let inSight = true;
  function look() {
    const now = inSight && !document.hidden;
    if (now !== lookedAt) {
      lookedAt = now;
      heard = performance.now();
      model.send({ kind: now ? "look" : "away", view });
      showLife();
    }
  }
  const sight = new IntersectionObserver(([entry]) => {
    inSight = entry.isIntersecting;
    look();
  });
  sight.observe(root);
  document.addEventListener("visibilitychange", look);
  const beat = setInterval(() => lookedAt && model.send({ kind: "look", view, again: true }), LOOK_MS);
  const life = setInterval(showLife, 1000);
  cleanups.push(() => {
    sight.disconnect();
    document.removeEventListener("visibilitychange", look);
    clearInterval(beat);
    clearInterval(life);
    if (lookedAt) model.send({ kind: "away", view });
  });

  // ---- light and dark, narrow and broad

  const shade = () => kit.mark(root, "data-theme", darkPage() ? "dark" : "light");
  const themes = new MutationObserver(shade);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", shade);
  const widths = new ResizeObserver(([entry]) => root.classList.toggle("broad", entry.contentRect.width >= BROAD_PX));
  widths.observe(root);
  cleanups.push(() => {
    themes.disconnect();
    scheme.removeEventListener("change", shade);
    widths.disconnect();
  });

  shade();
  host.append(root);
  take(model.get("first"));
  look();
  requestAnimationFrame(() => requestAnimationFrame(() => performance.measure("kos-monitor-painted", "kos-monitor-begins")));
  return () => cleanups.forEach((clean) => clean());
}

export default { render };
