// The engines that run on the cluster, with a way to the dashboard of each. Shown only where there is one.

import kit from "../kit.js";

const FIELDS = ["kind", "state", "workers", "wanted", "waiting", "running", "held_bytes", "node", "why", "dashboard"];
const STATES = { starting: "accent", serving: "good", failed: "bad" };

export default {
  name: "engines",
  title: "Engines",
  mount({ ask, root, role }) {
    const engines = new Map(); // name -> its row
    const node = kit.el("ul", { class: "kos-engines", "aria-label": "Engines" });

    function create(name) {
      const row = kit.el("li", { class: "kos-engine", "data-engine": name });
      row.name = kit.el("b", { class: "kos-name" }, name);
      row.state = kit.el("span", { class: "kos-state" });
      row.about = kit.el("span", { class: "kos-small" });
      row.link = kit.el("a", { target: "_blank", rel: "noopener", hidden: true });
      row.open = kit.button("Dashboard", `Dashboard of ${name}`, () => open(row, name));
      row.token = kit.el("span", { class: "kos-small", hidden: true });
      row.append(row.name, row.state, row.about, row.open, row.link, row.token);
      node.append(row);
      return row;
    }

    function open(row, name) {
      ask("engines", "dashboard", { engine: name }).then(
        ({ address, token }) => {
          row.link.href = address;
          kit.say(row.link, address);
          kit.say(row.token, token && `It asks for this token: ${token}`);
          row.token.hidden = !token;
          row.link.hidden = false; // also where the browser lets no window be opened
          window.open(address, "_blank", "noopener");
        },
        (error) => root.say(error.message, true),
      );
    }

    function fill(row, engine) {
      kit.mark(row, "data-state", engine.state);
      kit.say(row.state, engine.state);
      row.state.className = `kos-state ${STATES[engine.state] ?? ""}`;
      const workers = engine.workers === engine.wanted ? kit.counted(engine.workers, "worker") : `${engine.workers} of ${engine.wanted} workers`;
      const work = engine.waiting + engine.running ? `${kit.count(engine.running)} running, ${kit.count(engine.waiting)} waiting` : "";
      const held = engine.held_bytes ? `${kit.bytes(engine.held_bytes)} held` : "";
      kit.say(row.about, [engine.kind, workers, work, held, engine.node && `head on ${engine.node}`, engine.why].filter(Boolean).join(" · "));
      row.open.hidden = !role.cancel || !engine.dashboard || engine.state !== "serving";
      if (row.open.hidden) row.link.hidden = row.token.hidden = true;
    }

    return {
      node,
      note: () => (engines.size ? kit.count(engines.size) : ""),
      empty: () => engines.size === 0,
      update(news) {
        const told = Object.entries(news.changed);
        const gone = news.full ? [...engines.keys()].filter((name) => !(name in news.changed)) : news.removed;
        for (const name of gone) {
          engines.get(name)?.remove();
          engines.delete(name);
        }
        for (const [name, fields] of told) {
          if (!engines.has(name)) engines.set(name, create(name));
          fill(engines.get(name), Object.fromEntries(FIELDS.map((field, place) => [field, fields[place]])));
        }
      },
    };
  },
};
