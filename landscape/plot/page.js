// A figure as the page shows it: dark or light, on paper, with some variants pale.
// The figure as it was made stands as JSON in the element after its box, and is never changed.
var Look = (function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var PAPER = { ink: "#1d1f22", line: "#dfe1e4", faint: "#6a6e74" }, WIDTH = 690, LEGEND_ROW = 22, LOWER = 0.64;

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
    stack(one, box, o.printing);
    wrap(one, o.printing ? WIDTH : room(box));
    if (o.printing) {
      // As wide as A4 or Letter is between margins, whatever the window was.
      one.layout.width = WIDTH;
    }
    return one;
  }
  function room(box) { return box.parentElement.clientWidth - 14; }
  function fits(box, width) { return Math.floor(1.15 * width / Number(box.dataset.least)); }
  function fitting(box) {
    // How many panels find room side by side, each nearly as wide as it should be.
    return Math.max(1, Math.min(Number(box.dataset.columns), fits(box, room(box))));
  }
  function name(id, letter) { return letter + "axis" + id.slice(1); }
  function panelsOf(one) {
    // What is drawn, in reading order: a pair of axes or a scene each, with where it stands.
    var layout = one.layout, found = {};
    one.data.forEach(function (trace) {
      var scene = trace.type === "surface" ? trace.scene || "scene" : null;
      var x = name(trace.xaxis || "x", "x"), y = name(trace.yaxis || "y", "y"), key = scene || x + y;
      found[key] = found[key] || { x: scene ? null : x, y: scene ? null : y, scene: scene, bar: null,
        across: (scene ? layout[scene].domain.x : layout[x].domain),
        up: (scene ? layout[scene].domain.y : layout[y].domain) };
      if (trace.showscale !== false && /^(heatmap|contour|surface)$/.test(trace.type)) found[key].bar = trace;
    });
    return Object.keys(found).map(function (key) { return found[key]; }).sort(function (a, b) {
      return Math.abs(a.up[1] - b.up[1]) > 1e-6 ? b.up[1] - a.up[1] : a.across[0] - b.across[0];
    });
  }
  function root(layout, key) {
    for (var next = key; next; next = layout[key].matches && name(layout[key].matches, key[0])) key = next;
    return key;
  }
  function together(layout, panels, which) {
    var first = panels[0][which] && root(layout, panels[0][which]);
    return panels.every(function (p) { return p[which] && root(layout, p[which]) === first; });
  }
  function names(layout, panels) {
    // Pixels that the longest name of a row takes, left of the panels.
    return 6.2 * Math.max.apply(null, [0].concat(panels.map(function (p) {
      var texts = (p.y && layout[p.y].ticktext) || [];
      return Math.max.apply(null, [0].concat(texts.map(function (text) { return text.replace(/<[^>]*>/g, "").length; })));
    })));
  }
  function stack(one, box, printing) {
    // The panels in fewer columns where they have no room, each as high as it was and with ticks
    // and names of its own. Printed ones stay side by side and are lower; their words are not.
    var layout = one.layout, panels = panelsOf(one), plot = layout.height - layout.margin.t - layout.margin.b;
    var width = room(box), columns = Math.max(1, fits(box, width - names(layout, panels)));
    var wide = new Set(panels.map(function (p) { return p.across[0].toFixed(4); })).size;
    columns = printing ? wide : Math.min(columns, wide);
    var fewer = columns < wide;
    if (printing) width = WIDTH;
    if (fewer || printing) {
      // Rows that share a scale are cut in equal parts, so that no row has two scales.
      if (fewer && !together(layout, panels, "y")) while (wide % columns) columns -= 1;
      var named = {}, shares = panels.some(function (p) { return p.y && layout[p.y].showticklabels === false; });
      panels.forEach(function (p) {
        if (p.scene) return;
        ["x", "y"].forEach(function (which) {
          var axis = layout[p[which]], place = which === "x" ? p.across : p.up;
          if (axis.showticklabels !== false) named[which + place[0].toFixed(4)] = named[which] = axis;
        });
      });
      var notes = (layout.annotations || []).filter(function (note) { return note.xref === "paper" && note.yref === "paper"; });
      panels.forEach(function (p, i) {
        p.column = i % columns;
        p.row = Math.floor(i / columns);
        p.unnamed = !p.scene && layout[p.x].showticklabels === false;
        p.note = notes.filter(function (note) {
          return Math.abs(note.x - (p.across[0] + p.across[1]) / 2) < 1e-3 && Math.abs(note.y - p.up[1]) < 1e-3;
        })[0];
        p.height = (p.up[1] - p.up[0]) * plot * (printing ? LOWER : 1);
        p.above = p.note ? 8 + 17 * p.note.text.split("<br>").length : 8;
        p.below = (p.scene ? 8 : !fewer && p.unnamed ? 12 : 52) + (fewer && p.bar ? 62 : 0);
        if (p.scene || !fewer) return;
        ["x", "y"].forEach(function (which) {
          var axis = layout[p[which]], place = which === "x" ? p.across : p.up;
          var like = named[which + place[0].toFixed(4)] || named[which];
          if (which === "y" && p.column) {
            if (shares) { axis.showticklabels = false; axis.title = { text: "" }; }
          } else if (axis.showticklabels === false && like) {
            axis.showticklabels = true;
            axis.title = JSON.parse(JSON.stringify(like.title || {}));
          }
        });
      });
      var gap = columns > 1 ? 62 / width : 0, share = (1 - gap * (columns - 1)) / columns;
      var rows = [], last = panels[panels.length - 1].row;
      for (var r = 0; r <= last; r += 1) {
        var here = panels.filter(function (p) { return p.row === r; });
        var most = function (key) { return Math.max.apply(null, here.map(function (p) { return p[key]; })); };
        rows.push({ above: most("above"), height: most("height"), below: most("below") });
      }
      var tail = rows[last].below - 52;
      var whole = rows.reduce(function (sum, row) { return sum + row.above + row.height + row.below; }, 0)
        - rows[0].above - rows[last].below;
      var at = -rows[0].above;
      rows.forEach(function (row) {
        row.top = 1 - (at + row.above) / whole;
        row.bottom = row.top - row.height / whole;
        at += row.above + row.height + row.below;
      });
      panels.forEach(function (p) {
        var row = rows[p.row], left = p.column * (share + gap);
        var across = fewer ? [left, Math.min(1, left + share)] : p.across;
        var up = [Math.max(0, row.bottom), Math.min(1, row.top)];
        if (p.scene) layout[p.scene].domain = { x: across, y: up };
        else { layout[p.x].domain = across; layout[p.y].domain = up; }
        if (p.note) { p.note.x = (across[0] + across[1]) / 2; p.note.y = up[1]; }
        if (p.bar && !fewer && p.bar.colorbar.y !== undefined) {
          Object.assign(p.bar.colorbar, { y: (up[0] + up[1]) / 2, len: up[1] - up[0] });
        }
        if (!p.bar || !fewer) return;
        Object.assign(p.bar.colorbar, { orientation: "h", thickness: 10, len: 0.94 * share, lenmode: "fraction",
          x: (across[0] + across[1]) / 2, xanchor: "center",
          y: up[0] - (p.scene ? 4 : 46) / whole, yanchor: "top" });
        p.bar.colorbar.title = Object.assign({}, p.bar.colorbar.title, { side: "top" });
      });
      layout.margin.t = Math.max(layout.margin.t, rows[0].above);
      layout.margin.b += Math.max(0, tail);
      if (layout.legend) layout.legend.y = -(48 + Math.max(0, tail)) / whole;
      plot = whole;
    }
    lay(one, plot, width);
  }
  function wrap(one, width) {
    // The name of an axis takes no more than the width of its panel.
    var layout = one.layout, more = 0, plot = layout.height - layout.margin.t - layout.margin.b;
    panelsOf(one).forEach(function (p) {
      var title = p.x && one.layout[p.x].title, room = (p.across[1] - p.across[0]) * (width - 70) / 7.4;
      if (!title || !title.text || title.text.length <= room || /<br>/.test(title.text)) return;
      var lines = [""];
      title.text.split(" ").forEach(function (word) {
        var last = lines[lines.length - 1];
        if (last && last.length + 1 + word.length > room) lines.push(word);
        else lines[lines.length - 1] = last ? last + " " + word : word;
      });
      title.text = lines.join("<br>");
      more = Math.max(more, 16 * (lines.length - 1));
    });
    layout.margin.b += more;
    layout.height += more;
    if (layout.legend) layout.legend.y -= more / plot;
  }
  function lay(one, plot, width) {
    // Room for the rows of the legend at this width.
    var layout = one.layout, names = one.data.filter(function (t) { return t.showlegend === true; })
      .map(function (t) { return t.name; });
    var longest = Math.max.apply(null, [1].concat(names.map(function (n) { return n.length; })));
    var each = Math.max(1, Math.floor(width / (52 + 6.6 * longest)));
    var rows = layout.showlegend === false ? 0 : Math.ceil(names.length / each), had = Math.ceil(names.length / 5);
    layout.margin.b += LEGEND_ROW * Math.max(0, rows - had);
    layout.height = plot + layout.margin.t + layout.margin.b;
  }
  function quiet(box) {
    // A figure is one stop of the tabulator: its frame. Its buttons are for the pointer.
    box.querySelectorAll("a, button, [tabindex]").forEach(function (part) { part.tabIndex = -1; });
  }
  function draw(box, config, options, made) {
    // Draws or draws again; zoom and camera stay as they are. made(box): once it is drawn anew.
    var one = dressed(box, options), shown = String(fitting(box)), first = !box.dataset.drawn;
    if (!first && box.dataset.shown !== shown) {
      // A bar of colours that lies down keeps the room of one that stood: all is drawn anew.
      Plotly.purge(box);
      first = true;
    }
    box.dataset.drawn = "1";
    box.dataset.shown = shown;
    box.style.minHeight = "0";
    if (!first) return Plotly.react(box, one.data, one.layout, config);
    return Plotly.newPlot(box, { data: one.data, layout: one.layout, config: config, frames: one.frames })
      .then(function () {
        quiet(box);
        box.on("plotly_afterplot", function () { quiet(box); });
        if (made) made(box);
      });
  }
  function turned(box) {
    // What is folded away has no width, and keeps what it has.
    return Boolean(box.dataset.drawn) && box.parentElement.clientWidth > 0
      && Number(box.dataset.shown) !== fitting(box);
  }
  return { dark: dark, spec: spec, draw: draw, turned: turned };
}());
