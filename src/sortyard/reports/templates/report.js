"use strict";
(() => {
  const figures = [...document.querySelectorAll("script[type='application/json'][data-plot]")].map((script) => ({
    target: document.getElementById(script.dataset.plot),
    spec: script.textContent,
  }));

  // Figures name colours as theme:NAME; the style sheet holds them for light, dark and print.
  const themed = (spec) => {
    const style = getComputedStyle(document.documentElement);
    return JSON.parse(spec, (_, value) =>
      typeof value === "string" && value.startsWith("theme:") ? style.getPropertyValue(`--${value.slice(6)}`).trim() : value
    );
  };

  const dressed = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const result = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: false, ...layout,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("muted") },
      hoverlabel: { bgcolor: color("surface"), bordercolor: color("rule"), font: { color: color("ink") } },
    };
    for (const name of Object.keys(result)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      result[name] = {
        gridcolor: color("grid"), zeroline: false, linecolor: color("rule"), tickcolor: color("rule"), automargin: false,
        fixedrange: true, ...result[name],
      };
    }
    return result;
  };

  const draw = () => {
    for (const { target, spec } of figures) {
      const { data, layout } = themed(spec);
      Plotly.react(target, data, dressed(layout), { responsive: true, displayModeBar: false });
    }
  };

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.matchMedia("print").addEventListener("change", draw);
})();
