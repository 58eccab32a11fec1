// A figure as the page shows it: dark or light, on paper, with some variants pale.
// The figure as it was made stands as JSON in the element after its box, and is never changed.
var Look = (function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var PAPER = { ink: "#1d1f22", line: "#dfe1e4", faint: "#6a6e74" }, WIDTH = 690, LEGEND_ROW = 22;

  function css(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
  function channels(color) {
    // "#rrggbb" or "rgba(r,g,b,a)" as [r, g, b, a]; null for anything else.
    var hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(color);
    if (hex) return [1, 2, 3].map(function (k) { return parseInt(hex[k], 16); }).concat(1);
    var rgba = /^rgba?\(([^)]*)\)$/.exec(color);
    if (!rgba) return null;
    var parts = rgba[1].split(",").map(Number);
    return parts.length === 3 ? parts.concat(1) : parts;
  }
  function light(c) {
    var linear = c.slice(0, 3).map(function (v) {
      v /= 255;
      return v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  }
  function seen(color) {
    // A colour of the print on a dark page: a mark has a contrast of 3 with what is under it.
    var c = typeof color === "string" ? channels(color) : null;
    if (!c) return color;
    if (light(c) < 0.02) return c[3] < 1 ? "rgba(232,230,225," + c[3] + ")" : css("ink");
    var ground = light([32, 33, 35]) + 0.05, out = c;
    for (var share = 0; share <= 1 && (light(out) + 0.05) / ground < 3; share += 0.1) {
      out = c.map(function (v, k) { return k < 3 ? Math.round(v + (255 - v) * share) : v; });
    }
    return "rgba(" + out.join(",") + ")";
  }
  function lighten(one) {
    one.data.forEach(function (trace) {
      [trace.marker, trace.line, trace.error_x, trace.error_y, trace.marker && trace.marker.line]
        .forEach(function (part) { if (part && part.color !== undefined) part.color = seen(part.color); });
    });
    (one.layout.annotations || []).forEach(function (note) {
      if (note.font && note.font.color) note.font.color = seen(note.font.color);
    });
  }
  function tint(layout, colours) {
    layout.font.color = colours.ink;
    layout.modebar.color = colours.faint;
    layout.modebar.activecolor = colours.ink;
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis/.test(key)) { layout[key].gridcolor = colours.line; layout[key].linecolor = colours.line; }
      if (/^scene/.test(key)) {
        ["x", "y", "z"].forEach(function (a) {
          var axis = layout[key][a + "axis"];
          if (axis) axis.gridcolor = colours.line;
        });
      }
    });
  }
  function fade(one, pale) {
    // A trace belongs to a variant by its own name, its entry in the legend, or its panel's title.
    one.data.forEach(function (trace) {
      if (pale(trace.legendgroup) || pale(trace.name) || pale(trace.meta)) {
        trace.opacity = 0.12 * (trace.opacity === undefined ? 1 : trace.opacity);
      }
    });
    (one.layout.annotations || []).forEach(function (note) {
      if (pale(note.text.split("<br>")[0])) note.opacity = 0.3;
    });
    Object.keys(one.layout).forEach(function (key) {
      var axis = one.layout[key];
      if (!/^[xy]axis/.test(key) || !axis.ticktext) return;
      axis.ticktext = axis.ticktext.map(function (text) {
        return pale(text) ? '<span style="opacity:0.35">' + text + "</span>" : text;
      });
    });
  }
  function shared(one, known) {
    // Entries that the page's own legend has are not repeated, and their room is given back.
    var rows = { before: {}, after: {} };
    one.data.forEach(function (trace) {
      if (trace.showlegend !== true) return;
      rows.before[trace.name] = true;
      if (known.indexOf(trace.name) >= 0) trace.showlegend = false;
      else rows.after[trace.name] = true;
    });
    var room = LEGEND_ROW * (Math.ceil(Object.keys(rows.before).length / 5)
      - Math.ceil(Object.keys(rows.after).length / 5));
    if (one.layout.showlegend === false || !room) return;
    one.layout.margin.b -= room;
    one.layout.height -= room;
  }
  function spec(box) { return JSON.parse(box.nextElementSibling.textContent); }
  function dressed(box, options) {
    // options: pale(name), known (names that the page's legend has), printing.
    var one = spec(box), o = options || {};
    one.layout.uirevision = "kept";
    tint(one.layout, o.printing ? PAPER : { ink: css("ink"), line: css("line"), faint: css("faint") });
    if (dark.matches && !o.printing) lighten(one);
    if (o.pale) fade(one, o.pale);
    if (o.known && !o.printing) shared(one, o.known);
    if (o.printing) {
      // As wide as A4 or Letter is between margins, whatever the window was.
      one.layout.width = WIDTH;
      one.layout.height = Math.round(0.75 * one.layout.height);
    }
    return one;
  }
  function fit(box, printing) {
    // Panels stay readable on a phone: the figure scrolls inside its frame, the page does not.
    var least = Number(box.dataset.least), columns = Number(box.dataset.columns);
    box.style.minWidth = columns > 1 && !printing ? least * columns + "px" : "0";
    box.style.minHeight = "0";
  }
  function quiet(box) {
    // A figure is one stop of the tabulator: its frame. Its buttons are for the pointer.
    box.querySelectorAll("a, button, [tabindex]").forEach(function (part) { part.tabIndex = -1; });
  }
  function draw(box, config, options) {
    // Draws or draws again; zoom and camera stay as they are.
    var one = dressed(box, options), first = !box.dataset.drawn;
    box.dataset.drawn = "1";
    fit(box, options && options.printing);
    if (!first) return Plotly.react(box, one.data, one.layout, config);
    return Plotly.newPlot(box, { data: one.data, layout: one.layout, config: config, frames: one.frames })
      .then(function () {
        quiet(box);
        box.on("plotly_afterplot", function () { quiet(box); });
      });
  }
  return { dark: dark, spec: spec, draw: draw };
}());
