"use strict";
(() => {
  const { about, frozen } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const SHADES = 255, SHOWN_ROWS = 20, GOLDEN_ANGLE = 137.508;
  const state = { question: null, look: null, side: 0, layer: null, head: 0, query: null, map: null, row: null, missing: "", turn: 0 };

  // ---- questions: of the server, or of what was frozen into the page
  const unpack = async (packed) => {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const units = new Map();
  const askFrozen = async (kind, question) => {
    if (kind === "look") return unpack(frozen.look);
    const name = `${state.side}|${question.layer}|${question.head}`;
    if (!(name in frozen.units)) throw new Error("This head is not in the frozen page; there was room for " + Object.keys(frozen.units).length + ". Freeze it anew with --layer and --head.");
    if (!units.has(name)) units.set(name, await unpack(frozen.units[name]));
    const unit = units.get(name);
    if (kind === "map") return unit.map;
    const kept = Object.keys(unit.rows).map(Number);
    return unit.rows[kept.reduce((best, one) => (Math.abs(one - question.query) < Math.abs(best - question.query) ? one : best))];
  };
  const askServer = async (kind, question) => {
    const answer = await fetch(`/api/${kind}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) })
      .catch(() => { throw new Error("The server does not answer; is `sortyard inspect` still running?"); });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    return content;
  };
  const ask = frozen ? askFrozen : askServer;
  const place = () => ({ text: state.question.text, before: state.side ? state.question.other : state.question.before, layer: state.layer, head: state.head });

  // ---- small parts
  const make = (tag, { text, ...rest } = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), rest);
    if (text !== undefined) node.textContent = text;
    node.append(...children);
    return node;
  };
  const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
  const table = (caption, header, rows) => make("table", {}, make("caption", { text: caption }),
    make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { text, scope: "col" })))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text, i) => (i ? make("td", { text }) : make("th", { text, scope: "row" })))))));
  const style = () => getComputedStyle(document.documentElement);
  const color = (name) => style().getPropertyValue(`--${name}`).trim();
  const options = (select, values, chosen) => select.replaceChildren(...values.map(([value, text]) => make("option", { value, text, selected: value === chosen })));
  const draw = (id, data, layout) => Plotly.react(at(id), data, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("muted") },
    hoverlabel: { bgcolor: color("surface"), font: { color: color("ink") } }, dragmode: false, ...layout,
  }, { responsive: true, displayModeBar: false });
  const axis = (more) => ({ gridcolor: color("grid"), zeroline: false, fixedrange: true, ...more });
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

  const side = () => state.look.sides[state.side];
  const inContext = (i) => i < side().sentence[0] || i >= side().sentence[1];
  const says = (text) => { at("status").textContent = text; };
  // One after another, so that a slow answer never overwrites a later one.
  let last = Promise.resolve();
  const guarded = (work) => (...words) => {
    const turn = ++state.turn;
    at("look").disabled = true;
    says("reading …");
    last = last.then(async () => {
      at("error").hidden = true;
      try { await work(...words); } catch (error) { at("error").textContent = error.message; at("error").hidden = false; }
      if (turn === state.turn) { at("look").disabled = false; says(""); }
    });
    return last;
  };

  // ---- answer
  const showPrediction = () => at("prediction").replaceChildren(...state.look.sides.map(({ prediction }, i) => {
    const title = (state.look.sides.length > 1 ? (i ? "Other: " : "First: ") : "") + prediction.title;
    const rows = prediction.rows.map((row) => [row.label, "share" in row ? percent(row.share) : row.value.toFixed(3)]);
    return make("div", { className: "card scroll" }, rows.length ? table(title, ["answer", "probability or value"], rows) : make("p", { text: title + "." }));
  }));

  // ---- attention
  const chip = (token, i) => {
    const { row, map } = state, kind = row ? Number(row.kind[i]) : 0;
    const shared = map.buckets && map.buckets[i] === map.buckets[state.query];
    const names = [["left-out", "exact", "summarised"][kind], i === state.query && "query", shared && "same", inContext(i) && "context"];
    const button = make("button", { type: "button", className: names.filter(Boolean).join(" "), tabIndex: i === state.query ? 0 : -1, text: token });
    button.dataset.token = i;
    const words = ["not computed", "exact", "summarised"][kind] + (shared ? ", in the query's bucket" : "");
    button.setAttribute("aria-label", `${token}, token ${i + 1}, ${words}, dense mass ${percent(row ? row.mass[i] : 0)}`);
    button.setAttribute("aria-pressed", String(i === state.query));
    button.title = `${words}; dense ${percent(row ? row.mass[i] : 0)}, here ${percent(row ? row.weight[i] : 0)}`;
    if (row) button.append(Object.assign(make("i"), { style: `width: ${Math.round(100 * Math.sqrt(row.mass[i] / Math.max(...state.heaviest)))}%` }));
    return button;
  };
  const showRow = () => {
    const { row } = state, tokens = side().tokens, n = tokens.length;
    state.heaviest = [row.mass.reduce((a, b) => Math.max(a, b), 1e-9)];
    at("tokens").replaceChildren(...tokens.map(chip));
    const words = row.summaries.length;
    const left = n - row.num_exact - row.num_summarised;
    at("query-line").textContent = `Query ${tokens[state.query]} (token ${state.query + 1} of ${n}): ${row.num_exact} keys exact` +
      ` with ${percent(row.mass_exact)} of its dense mass, ${row.num_summarised} behind ${words} summar${words === 1 ? "y" : "ies"}` +
      (left ? `, ${left} not read.` : ": every key is accounted for once.") + state.missing;
    const x = tokens.map((_, i) => i + 1), hover = tokens.map((token, i) => `${plain(token)}, token ${i + 1}`);
    const bars = (name, values, shade) => ({ type: "bar", name, x, y: values, marker: { color: color(shade) }, customdata: hover, hovertemplate: `${name}<br>%{customdata}: %{y:.2%}<extra></extra>` });
    const only = (kind) => row.weight.map((weight, i) => (Number(row.kind[i]) === kind ? weight : null));
    draw("row-plot", [{ ...bars("dense", row.mass, "muted"), opacity: 0.35, width: 1 }, { ...bars("exact", only(1), "accent"), width: 0.6 }, { ...bars("summarised", only(2), "amber"), width: 0.6 }], {
      barmode: "overlay", showlegend: false, margin: { l: 56, r: 8, t: 10, b: 40 }, height: 240,
      xaxis: axis({ title: { text: "key, by place" } }), yaxis: axis({ tickformat: ".1~%", rangemode: "tozero" }),
    });
    const order = row.mass.map((mass, i) => [mass, i]).sort((a, b) => b[0] - a[0]).slice(0, SHOWN_ROWS);
    const keys = order.map(([mass, i]) => [`${tokens[i]} (${i + 1})`, ["not computed", "exact", "summarised"][Number(row.kind[i])], percent(mass), percent(row.weight[i])]);
    const shown = row.summaries.slice(0, SHOWN_ROWS).map((one) => [one.keys.slice(0, 6).map((i) => tokens[i]).join(" ") + (one.keys.length > 6 ? " …" : ""), String(one.keys.length), percent(one.mass), percent(one.weight)]);
    at("row-tables").replaceChildren(
      make("div", { className: "scroll" }, table(`Keys with most dense mass (${keys.length} of ${n})`, ["key", "how", "dense mass", "weight here"], keys)),
      make("div", { className: "scroll" }, shown.length ? table(`Summaries (${shown.length} of ${words})`, ["stands for", "keys", "dense mass", "weight here"], shown) : make("p", { text: "No summaries: every key is exact." })));
  };
  const showMap = () => {
    const { map } = state, tokens = side().tokens, scale = map.size / map.cells;
    const heat = (name, kind, shade, number) => ({
      type: "heatmap", name, zmin: 0, zmax: SHADES, showscale: false, hoverongaps: false, xaxis: `x${number}`, yaxis: `y${number}`,
      z: map.shade.map((row, i) => row.map((value, j) => (kind < 0 || map.kind[i][j] === kind ? value : null))),
      x0: 1 + (scale - 1) / 2, dx: scale, y0: 1 + (scale - 1) / 2, dy: scale,
      colorscale: [[0, color(`${shade}-faint`)], [1, color(shade)]], hovertemplate: `${name}<br>query %{y:.0f}, key %{x:.0f}<extra></extra>`,
    });
    const square = { scaleratio: 1, constrain: "domain", autorange: "reversed", showgrid: false };
    const title = (text, x) => ({ text: `<b>${text}</b>`, x, y: 1, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13, color: color("ink") } });
    const line = (number) => ({ type: "line", xref: `x${number} domain`, x0: 0, x1: 1, yref: `y${number}`, y0: state.query + 1, y1: state.query + 1, line: { color: color("violet"), width: 1, dash: "dot" } });
    draw("map-plot", [heat("dense attention", -1, "ink", ""), heat("not computed", 0, "ink", 2), heat("exact", 1, "accent", 2), heat("summarised", 2, "amber", 2)], {
      height: 520, margin: { l: 56, r: 8, t: 30, b: 44 }, showlegend: false,
      xaxis: axis({ domain: [0, 0.485], constrain: "domain", showgrid: false, title: { text: "key" } }), yaxis: axis({ ...square, scaleanchor: "x", title: { text: "query" } }),
      xaxis2: axis({ domain: [0.515, 1], constrain: "domain", showgrid: false, anchor: "y2", title: { text: "key" } }), yaxis2: axis({ ...square, scaleanchor: "x2", anchor: "x2", showticklabels: false }),
      annotations: [title("Dense attention", 0), title("Bucket attention", 0.515)], shapes: [line(""), line(2)],
    });
    const pooled = scale > 1 ? ` Each cell stands for about ${scale.toFixed(0)} x ${scale.toFixed(0)} pairs, in the colour of most of them.` : "";
    at("map-line").textContent = `Layer ${map.layer + 1}, head ${map.head + 1}, ${map.size} tokens; queries down, keys across; the dotted line is the query. The stronger the colour, the more mass dense attention puts there. ` +
      `${percent(map.exact)} of the pairs are exact (teal), ${percent(map.summarised)} stand behind a summary (amber).${pooled}`;
    const dense = map.exact === 1 ? ` At ${tokens.length} tokens every bucket is read, so this layer is dense here; a longer text shows buckets.` : "";
    at("layer-line").textContent = `The layer's output differs from dense attention by ${percent(map.output_error)} at a sparsity of ${percent(map.sparsity)}; its exact keys carry ${percent(map.layer_mass_kept)} of the dense mass, this head's ${percent(map.mass_kept)}.${dense}`;
  };
  const loadRow = async () => {
    const asked = state.query;
    state.row = await ask("row", { ...place(), query: asked });
    state.query = state.row.query;
    state.missing = asked === state.query ? "" : ` Of this long text the frozen page holds every few queries; this is the nearest to token ${asked + 1}.`;
    showRow();
    showMap();
  };
  const loadMap = async () => {
    state.map = await ask("map", place());
    await loadRow();
  };

  // ---- experts
  const showExperts = () => {
    const chosen = Number(at("expert-layer").value), mine = side().experts.find((one) => one.layer === chosen);
    if (!mine) return;
    const partner = new Map((state.look.pairs || []).map(([a, b]) => (state.side ? [b, a] : [a, b])));
    const theirs = state.look.sides.length > 1 ? state.look.sides[1 - state.side].experts.find((one) => one.layer === chosen) : null;
    const set = (experts) => [...experts].sort((a, b) => a - b).join(" ");
    at("expert-tokens").replaceChildren(...side().tokens.map((token, i) => {
      const experts = mine.experts[i], before = theirs && partner.has(i) ? theirs.experts[partner.get(i)] : null;
      const changed = before && set(before) !== set(experts);
      const item = make("li", { className: [changed && "changed", inContext(i) && "context"].filter(Boolean).join(" ") }, token + " ", make("small", { text: experts.join(" ") }));
      if (changed) item.append(make("del", { text: before.join(" "), title: "with the other text before it" }));
      item.style.setProperty("--hue", Math.round(experts[0] * GOLDEN_ANGLE) % 360);
      item.title = experts.map((expert, k) => `expert ${expert}: gate ${mine.gates[i][k]}, weight ${mine.weights[i][k]}`).join("\n");
      return item;
    }));
    const count = (state.look.changed || []).find((one) => one.layer === chosen);
    at("experts-line").textContent = "Each token with the numbers of its experts, the heaviest first; the colour is the heaviest one's." +
      (count ? ` With the other text before it, ${count.changed} of the text's ${count.of} tokens go to other experts in this layer (outlined; struck out: those experts).` : "");
    const rows = side().tokens.map((token, i) => [`${token} (${i + 1})`, mine.experts[i].join(", "), mine.gates[i].join(", "), mine.weights[i].join(", ")]);
    at("expert-table").replaceChildren(table("Gates before selection, weights after it", ["token", "experts", "gates", "weights"], rows));
  };

  // ---- the page as a whole
  const lookAt = async (question, first = {}) => {
    const look = await ask("look", question);
    Object.assign(state, { question, look, side: 0, row: null, map: null });
    at("answer").hidden = false;
    at("sides").hidden = look.sides.length < 2;
    document.querySelector("input[name=side][value='0']").checked = true;
    showPrediction();
    const layers = about.layers.map((kind, i) => [i, kind]).filter(([, kind]) => kind === "bucket").map(([i]) => i);
    at("attention").hidden = !layers.length;
    const routed = look.sides[0].experts.map((one) => one.layer);
    at("experts").hidden = !routed.length;
    options(at("expert-layer"), routed.map((i) => [i, `${i + 1}`]), routed[routed.length - 1]);
    showExperts();
    if (!layers.length) return;
    state.layer = first.layer ?? (layers.includes(state.layer) ? state.layer : layers[Math.floor(layers.length / 2)]);
    state.head = first.head ?? state.head;
    state.query = Math.floor((look.sides[0].sentence[0] + look.sides[0].sentence[1]) / 2);
    options(at("layer"), layers.map((i) => [i, `${i + 1}`]), state.layer);
    options(at("head"), [...Array(about.heads).keys()].map((i) => [i, `${i + 1}`]), state.head);
    await loadMap();
  };
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const other = at("other").value;
    guarded(lookAt)({ text: at("text").value, before: at("before").value, other: other.trim() ? other : null });
  });
  at("layer").addEventListener("change", guarded(async () => { state.layer = Number(at("layer").value); await loadMap(); }));
  at("head").addEventListener("change", guarded(async () => { state.head = Number(at("head").value); await loadMap(); }));
  at("expert-layer").addEventListener("change", showExperts);
  at("sides").addEventListener("change", guarded(async (event) => {
    const partner = new Map((state.look.pairs || []).map(([a, b]) => (state.side ? [b, a] : [a, b])));
    state.side = Number(event.target.value);
    state.query = partner.get(state.query) ?? side().sentence[0];
    showExperts();
    if (state.layer !== null) await loadMap();
  }));
  const choose = guarded(async (query) => { state.query = query; await loadRow(); at("tokens").querySelector(".query")?.focus(); });
  at("tokens").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(Number(button.dataset.token));
  });
  at("tokens").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], button = event.target.closest("button");
    if (!step || !button) return;
    event.preventDefault();
    (step > 0 ? button.nextElementSibling : button.previousElementSibling)?.focus();
  });
  const redraw = () => { if (state.row) { showRow(); showMap(); } };
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.matchMedia("print").addEventListener("change", redraw);

  if (!frozen) return;
  for (const name of ["text", "before", "other"]) { at(name).value = frozen[name] ?? ""; at(name).readOnly = true; }
  at("look").hidden = true;
  guarded(lookAt)({ text: frozen.text, before: frozen.before, other: frozen.other }, { layer: frozen.layer, head: frozen.head });
})();
