// What happened: nodes that joined, were suspected, died; elections; jobs; tasks that were lost and rerun.

import kit from "../kit.js";

const EVENTS_LIMIT = 1000; // kept; the oldest go first
const KINDS = {
  joined: "good", back: "good", reached: "good", "works-again": "good", ended: "good",
  suspected: "warn", drained: "warn", rerun: "warn", restarted: "warn", left: "warn",
  dead: "bad", failed: "bad", unreachable: "bad",
  elected: "accent", started: "accent",
};

export default {
  name: "events",
  title: "Events",
  narrow: 430, // px: below it a row takes more lines
  mount() {
    let events = []; // the newest first
    let shown = [];
    let search = "";

    function create() {
      const row = kit.el("div", { class: "kos-event" });
      row.at = kit.el("span", { class: "kos-small" });
      row.kind = kit.el("span", { class: "kos-state" });
      row.text = kit.el("span", { class: "kos-text" });
      row.append(...[row.at, row.kind, row.text].map((each) => kit.el("div", { class: "kos-cell", role: "gridcell" }, each)));
      return row;
    }

    function fill(row, index) {
      const event = shown[index];
      kit.mark(row, "data-kind", event.kind);
      kit.say(row.at, kit.clock(event.at_s));
      kit.say(row.kind, event.kind.replace("-", " "));
      row.kind.className = `kos-state ${KINDS[event.kind] ?? ""}`;
      kit.say(row.text, event.text);
      row.text.title = event.text;
    }

    const list = new kit.VirtualList({ label: "Events", create, fill, height: 28 });
    const none = kit.el("p", { class: "kos-none" });
    const input = kit.el("input", { type: "search", placeholder: "Search events", "aria-label": "Search events" });
    input.addEventListener("input", () => {
      search = input.value.trim().toLowerCase();
      choose();
    });

    function choose() {
      shown = events.filter((event) => `${event.kind} ${event.text}`.toLowerCase().includes(search));
      list.setLength(shown.length);
      none.hidden = shown.length > 0;
      kit.say(none, events.length ? "No event matches." : "Nothing has happened yet.");
    }

    choose();
    return {
      node: kit.el("div", {}, list.node, none),
      tools: [input],
      resize: (narrow) => list.setHeight(narrow ? 46 : 28),
      update(news) {
        if (news.full) events = [];
        if (!news.full && !news.events.length) return;
        events = [...news.events.toReversed(), ...events].slice(0, EVENTS_LIMIT);
        choose();
      },
    };
  },
};
