(function () {
  "use strict";
  var config = JSON.parse(document.getElementById("plotly-config").textContent);
  var boxes = Array.prototype.slice.call(document.querySelectorAll(".figure"));
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var printing = false;

  function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  // ---- drawing, once, when it comes near the window ------------------------------------------
  function spec(box) { return JSON.parse(box.nextElementSibling.textContent); }
  function look(layout) {
    // Axes and letters follow the page; the colours of variants stay what they are on paper.
    var ink = printing ? "#1d1f22" : css("--ink"), line = printing ? "#dfe1e4" : css("--line");
    var change = { "font.color": ink, "modebar.color": css("--faint"), "modebar.activecolor": ink };
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis/.test(key)) { change[key + ".gridcolor"] = line; change[key + ".linecolor"] = line; }
      if (/^scene/.test(key)) {
        ["x", "y", "z"].forEach(function (a) { change[key + "." + a + "axis.gridcolor"] = line; });
      }
    });
    return change;
  }
  function quiet(box) {
    // A figure is one stop of the tabulator: its frame. Its buttons are for the pointer.
    box.querySelectorAll("a, button, [tabindex]").forEach(function (part) { part.tabIndex = -1; });
  }
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
    // A colour of the print as it is on this page: a mark has a contrast of 3 with what is under it.
    var c = typeof color === "string" ? channels(color) : null;
    if (!c || printing || !dark.matches) return color;
    if (light(c) < 0.02) return c[3] < 1 ? "rgba(232,230,225," + c[3] + ")" : css("--ink");
    var ground = light([32, 33, 35]) + 0.05, out = c;
    for (var share = 0; share <= 1 && (light(out) + 0.05) / ground < 3; share += 0.1) {
      out = c.map(function (v, k) { return k < 3 ? Math.round(v + (255 - v) * share) : v; });
    }
    return "rgba(" + out.join(",") + ")";
  }
  function ink(box) {
    // The colours of variants are what they are on paper, lighter where the page is dark.
    spec(box).data.forEach(function (trace, i) {
      var change = {};
      [["marker", "color"], ["line", "color"], ["error_x", "color"], ["error_y", "color"]].forEach(
        function (at) {
          var part = trace[at[0]];
          if (part && part[at[1]] !== undefined) change[at.join(".")] = seen(part[at[1]]);
        });
      if (trace.marker && trace.marker.line && trace.marker.line.color !== undefined) {
        change["marker.line.color"] = seen(trace.marker.line.color);
      }
      if (Object.keys(change).length) Plotly.restyle(box, change, [i]);
    });
    var words = {};
    (spec(box).layout.annotations || []).forEach(function (note, i) {
      if (note.font && note.font.color) words["annotations[" + i + "].font.color"] = seen(note.font.color);
    });
    if (Object.keys(words).length) Plotly.relayout(box, words);
  }
  function wide(box) {
    // Panels stay readable on a phone: the figure scrolls inside its frame, the page does not.
    var least = Number(box.dataset.least), columns = Number(box.dataset.columns);
    box.style.minWidth = columns > 1 && !printing ? least * columns + "px" : "0";
  }
  function draw(box) {
    if (box.dataset.drawn) return;
    box.dataset.drawn = "1";
    var one = spec(box);
    wide(box);
    Plotly.newPlot(box, one.data, one.layout, config).then(function () {
      box.on("plotly_afterplot", function () { quiet(box); });
      Plotly.relayout(box, look(one.layout));
      ink(box);
      show(box);
      link(box);
    });
  }
  function each(change) {
    boxes.forEach(function (box) { if (box.dataset.drawn && box.data) change(box); });
  }
  dark.addEventListener("change", function () { each(recolour); });
  function recolour(box) { Plotly.relayout(box, look(box.layout)); ink(box); }

  // ---- two variants, everywhere ---------------------------------------------------------------
  var choices = ["variant", "against"].map(function (id) { return document.getElementById("choose-" + id); });
  var known = choices[0] ? Array.prototype.map.call(choices[0].options, function (o) { return o.value; }) : [];
  function chosen() { return choices.map(function (c) { return c ? c.value : ""; }).filter(Boolean); }
  function pale(name) {
    var now = chosen();
    return now.length > 0 && known.indexOf(name) > 0 && now.indexOf(name) < 0;
  }
  function show(box) {
    if (!box.data) return;
    var opacity = box.data.map(function (trace, i) {
      if (trace.type === "surface" || trace.type === "contour" || trace.type === "heatmap") return null;
      var own = spec(box).data[i].opacity;
      own = own === undefined ? 1 : own;
      return pale(trace.legendgroup || trace.name) || pale(trace.name) ? 0.12 * own : own;
    });
    opacity.forEach(function (value, i) { if (value !== null) Plotly.restyle(box, { opacity: value }, [i]); });
  }
  function follow() {
    var now = chosen();
    each(show);
    document.querySelectorAll("[data-variants]").forEach(function (part) {
      var names = part.dataset.variants.split("|");
      part.classList.toggle("pale", now.length > 0 && !names.some(function (n) { return now.indexOf(n) >= 0; }));
    });
    var query = new URLSearchParams();
    choices.forEach(function (c) { if (c && c.value) query.set(c.name, c.value); });
    var text = query.toString();
    history.replaceState(null, "", location.pathname + (text ? "?" + text : "") + location.hash);
  }
  if (choices[0]) {
    var asked = new URLSearchParams(location.search);
    choices.forEach(function (c) {
      var value = asked.get(c.name) || "";
      if (known.indexOf(value) >= 0) c.value = value;
      c.addEventListener("change", follow);
    });
    document.getElementById("choose-none").addEventListener("click", function () {
      choices.forEach(function (c) { c.value = ""; });
      follow();
    });
  }

  // ---- cameras of surfaces turn together -------------------------------------------------------
  var turning = false;
  function link(box) {
    var scenes = Object.keys(box.layout).filter(function (key) { return /^scene/.test(key); });
    if (scenes.length < 2) return;
    box.on("plotly_relayout", function (event) {
      var key = Object.keys(event).filter(function (name) { return /^scene\d*\.camera$/.test(name); })[0];
      if (!key || turning) return;
      turning = true;
      var change = {};
      scenes.forEach(function (scene) { change[scene + ".camera"] = event[key]; });
      Plotly.relayout(box, change).then(function () { turning = false; });
    });
  }

  // ---- tables sort ----------------------------------------------------------------------------
  function number(cell) {
    var text = cell.childNodes.length ? cell.childNodes[0].textContent : "";
    var found = text.replace(/\u2212/g, "-").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : null;
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        var body = table.tBodies[0], rows = Array.prototype.slice.call(body.rows);
        rows.map(function (row, i) { return { row: row, i: i, cell: row.cells[column] }; })
          .sort(function (a, b) {
            var x = number(a.cell), y = number(b.cell), order;
            if (column === 0 || (x === null && y === null)) {
              order = a.cell.textContent.localeCompare(b.cell.textContent);
            } else {
              order = x === null ? 1 : y === null ? -1 : x - y;
            }
            return (up ? order : -order) || a.i - b.i;
          })
          .forEach(function (one) { body.appendChild(one.row); });
      });
    });
  });

  // ---- folded parts, print --------------------------------------------------------------------
  document.querySelectorAll("details").forEach(function (part) {
    part.addEventListener("toggle", function () {
      // What was drawn for print while folded away has no width yet.
      part.querySelectorAll(".js-plotly-plot").forEach(function (box) { Plotly.Plots.resize(box); });
    });
  });
  var folded = [];
  window.addEventListener("beforeprint", function () {
    printing = true;
    folded = Array.prototype.filter.call(document.querySelectorAll("details"), function (d) { return !d.open; });
    folded.forEach(function (part) { part.open = true; });
    boxes.forEach(draw);
    each(onPaper);
  });
  function onPaper(box) {
    // As wide as A4 or Letter is between margins, whatever the window was.
    box.style.minWidth = "0";
    box.style.minHeight = "0";
    var change = look(box.layout);
    change.width = 690;
    change.height = Math.round(0.85 * spec(box).layout.height);
    Plotly.relayout(box, change);
    ink(box);
  }
  function onScreen(box) {
    var change = look(box.layout);
    change.width = null;
    change.autosize = true;
    change.height = spec(box).layout.height;
    wide(box);
    Plotly.relayout(box, change);
    ink(box);
  }
  window.addEventListener("afterprint", function () {
    printing = false;
    folded.forEach(function (part) { part.open = false; });
    each(onScreen);
  });

  boxes.forEach(function (box) { box.style.minHeight = spec(box).layout.height + "px"; });
  follow();
  if (!("IntersectionObserver" in window)) { boxes.forEach(draw); return; }
  var watch = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (entry.isIntersecting) { watch.unobserve(entry.target); draw(entry.target); }
    });
  }, { rootMargin: "600px" });
  boxes.forEach(function (box) { watch.observe(box); });
}());
