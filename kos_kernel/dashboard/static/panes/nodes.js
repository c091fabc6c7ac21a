// The nodes: state, who coordinates, slots, CPU, memory and network over time; draining and removing.

import kit from "../kit.js";

const POINTS = 60;
const FIELDS = ["name", "address", "state", "coordinator", "voter", "drained", "slots", "running", "queued", "cpu", "memory", "received", "sent", "memory_bytes"];
const STATES = { alive: "good", suspect: "warn", dead: "bad" };

function cell(kind, ...children) {
  return kit.el("div", { class: `kos-cell ${kind}`, role: "gridcell" }, ...children);
}

function figure(title) {
  const value = kit.el("span", { class: "kos-figure" });
  const spark = kit.sparkline(POINTS);
  const made = cell("kos-measure", kit.el("span", { class: "kos-small" }, title), spark, value);
  return Object.assign(made, { spark, value });
}

function create() {
  const row = kit.el("div", { class: "kos-node" });
  row.state = kit.el("span", { class: "kos-state" });
  row.name = kit.el("span", { class: "kos-name" });
  row.badges = kit.el("span", { class: "kos-badges" });
  row.slots = kit.bar("slots");
  row.slotsText = kit.el("span", { class: "kos-figure" });
  row.queued = kit.el("span", { class: "kos-figure kos-queued" });
  row.cpu = figure("CPU");
  row.memory = figure("Mem");
  row.network = kit.el("span", { class: "kos-figure" });
  row.append(
    cell("kos-who", row.state, row.name, row.badges),
    cell("kos-slots", kit.el("span", { class: "kos-small" }, "Slots"), row.slots, row.slotsText, row.queued),
    row.cpu,
    row.memory,
    cell("kos-network", kit.el("span", { class: "kos-small" }, "Network"), row.network),
  );
  return row;
}

export default {
  name: "nodes",
  title: "Nodes",
  narrow: 520, // px: below it a row takes more lines
  mount({ ask, root, role }) {
    const nodes = new Map(); // id -> its fields
    const series = new Map(); // id -> {cpu, memory, network}
    let order = [];
    let shown = [];
    let search = "";

    const push = (id, key, value) => {
      const all = series.get(id) ?? series.set(id, { cpu: [], memory: [], network: [] }).get(id);
      all[key].push(value);
      if (all[key].length > 2 * POINTS) all[key].splice(0, all[key].length - POINTS);
    };
    const up = (node) => node.state !== "dead";
    const slotsOf = (node) => `${node.running} of ${node.slots} slots busy, ${kit.counted(node.queued, "task")} queued`;
    const network = (node) => (node.received == null ? null : node.received + (node.sent ?? 0));

    function fill(row, index) {
      const id = shown[index];
      const node = nodes.get(id);
      const known = series.get(id) ?? { cpu: [], memory: [], network: [] };
      kit.say(row.state, node.state);
      row.state.className = `kos-state ${STATES[node.state]}`;
      kit.mark(row, "data-node", node.name);
      kit.mark(row, "data-state", node.state);
      kit.say(row.name, node.name);
      row.name.title = node.address;
      const badges = [node.coordinator && "coordinator", !node.coordinator && node.voter && "voter", node.drained && "drained"].filter(Boolean);
      if (row.badged !== badges.join()) {
        row.badged = badges.join();
        row.badges.replaceChildren(...badges.map((text) => kit.el("span", { class: `kos-badge ${text}` }, text)));
      }
      row.slots.draw([[up(node) ? node.running / (node.slots || 1) : 0, "accent"]], slotsOf(node));
      kit.say(row.slotsText, up(node) ? `${node.running} of ${node.slots}` : "–");
      kit.say(row.queued, up(node) && node.queued ? `+${kit.count(node.queued)}` : "");
      kit.mark(row.queued, "title", row.queued.textContent && "queued at the node");
      for (const key of ["cpu", "memory"]) {
        row[key].spark.draw(known[key]);
        kit.say(row[key].value, up(node) ? kit.percent(node[key]) : "–");
      }
      kit.say(row.network, up(node) && node.received != null ? `↓ ${kit.bytes(node.received)}/s ↑ ${kit.bytes(node.sent)}/s` : "–");
    }

    const list = new kit.VirtualList({ label: "Nodes", head: kit.head("kos-node", "Node", "Slots", "CPU", "Memory", "Network"), create, fill, open: (index) => detail(shown[index]), height: 38 });
    const none = kit.el("p", { class: "kos-none" });
    const input = kit.el("input", { type: "search", placeholder: "Search nodes", "aria-label": "Search nodes by name, address or state" });
    input.addEventListener("input", () => {
      search = input.value.trim().toLowerCase();
      choose();
    });

    function choose() {
      shown = order.filter((id) => {
        const node = nodes.get(id);
        const words = `${node.name} ${node.address} ${node.state} ${node.coordinator ? "coordinator" : ""} ${node.voter ? "voter" : ""} ${node.drained ? "drained" : ""}`;
        return words.toLowerCase().includes(search);
      });
      list.setLength(shown.length);
      none.hidden = shown.length > 0;
      kit.say(none, search ? `No node matches “${search}”.` : "No nodes yet.");
    }

    function detail(id) {
      const node = nodes.get(id);
      const facts = kit.el("dl", {});
      const fact = (name, value) => facts.append(kit.el("dt", {}, name), kit.el("dd", {}, value));
      fact("State", [node.state, node.coordinator && "coordinator", node.voter && "voter", node.drained && "drained"].filter(Boolean).join(", "));
      fact("Address", node.address);
      fact("Slots", slotsOf(node));
      fact("Memory", `${kit.percent(node.memory)} of ${kit.bytes(node.memory_bytes)}`);
      const charts = kit.el("div", { class: "kos-charts" });
      const buttons = [];
      if (role.drain) {
        const [text, label] = node.drained ? ["Let it work again", "work-again"] : ["Drain…", "drain"];
        buttons.push([text, label, () => confirmDrain(node, id)]);
      }
      if (role.remove) buttons.push(["Remove…", "danger", () => confirmRemove(node, id)]);
      const box = kit.dialog(root, node.name, kit.el("div", {}, facts, charts), buttons);
      box.dataset.node = node.name;
      ask("nodes", "history", { node: id }).then((history) => {
        for (const [title, key, top] of [["CPU", "cpu", 1], ["Memory", "memory", 1], ["Slots busy", "busy", 1], ["Network", "network", 0]]) {
          const values = history[key];
          if (!values.length) continue;
          const spark = kit.sparkline(Math.max(2, values.length));
          const most = Math.max(...values.map((value) => value ?? 0));
          spark.draw(values, top || most);
          const now = values.at(-1);
          const text = key === "network" ? `${kit.bytes(now)}/s` : kit.percent(now);
          const peak = key === "network" ? `${kit.bytes(most)}/s` : kit.percent(most);
          charts.append(kit.el("figure", {}, kit.el("figcaption", {}, kit.el("b", {}, title), ` ${text}, at most ${peak}`), spark));
        }
        const since = history.times.length > 1 ? history.times.at(-1) - history.times[0] : 0;
        charts.append(kit.el("p", { class: "kos-small" }, `The last ${kit.duration(since)}.`));
      }, (error) => charts.append(kit.el("p", { class: "kos-error" }, error.message)));
    }

    function confirmDrain(node, id) {
      if (node.drained) return decide("drain", { node: id, undo: true }, `${node.name} is given work again.`);
      const text = `${node.name} will be given no more work. What runs there goes on, and it can be undone.`;
      kit.dialog(root, `Drain ${node.name}?`, kit.el("p", {}, text), [
        [`Drain ${node.name}`, "accent", () => decide("drain", { node: id, undo: false }, `${node.name} is drained.`)],
      ]);
    }

    function confirmRemove(node, id) {
      const text = `${node.name} is removed from the cluster for good: its certificate is refused from now on, and what it runs is run elsewhere. To come back it must join anew, with a new token.`;
      kit.dialog(root, `Remove ${node.name} for good?`, kit.el("p", {}, text), [
        [`Remove ${node.name}`, "danger", () => decide("remove", { node: id }, `${node.name} is removed.`)],
      ]);
    }

    function decide(what, message, done) {
      root.say("Asking the cluster…");
      ask("nodes", what, message).then(() => root.say(done), (error) => root.say(error.message, true));
    }

    choose();
    return {
      node: kit.el("div", {}, list.node, none),
      tools: [input],
      resize: (narrow) => list.setHeight(narrow ? 68 : 38),
      note: () => (order.length ? kit.count(order.length) : ""),
      update(news) {
        if (news.full) {
          nodes.clear();
          series.clear();
          for (const [id, history] of Object.entries(news.history)) series.set(id, history);
        }
        for (const [id, row] of Object.entries(news.changed)) nodes.set(id, Object.fromEntries(FIELDS.map((field, place) => [field, row[place]])));
        for (const id of news.removed) {
          nodes.delete(id);
          series.delete(id);
        }
        if (news.order) order = news.order;
        if (!news.full) {
          for (const [id, node] of nodes) {
            push(id, "cpu", up(node) ? node.cpu : null);
            push(id, "memory", up(node) ? node.memory : null);
            push(id, "network", up(node) ? network(node) : null);
          }
        }
        choose();
      },
    };
  },
};
