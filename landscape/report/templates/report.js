(function () {
  "use strict";
  var config = JSON.parse(document.getElementById("plotly-config").textContent);
  var boxes = Array.prototype.slice.call(document.querySelectorAll(".figure"));
  var printing = false;

  // ---- drawing, once, when it comes near the window ------------------------------------------
  function options() { return { pale: chosen().length ? pale : null, known: known, printing: printing }; }
  var near = new Set();
  function draw(box) {
    if (box.dataset.drawn) { if (box.dataset.stale) again(box); return; }
    Look.draw(box, config, options(), link);
  }
  function again(box) { delete box.dataset.stale; Look.draw(box, config, options(), link); }
  function changed() {
    // Far figures wait until they come near: a choice is answered at once on a page of sixty.
    boxes.forEach(function (box) {
      if (!box.dataset.drawn) return;
      if (near.has(box)) again(box); else box.dataset.stale = "1";
    });
  }
  Look.dark.addEventListener("change", changed);
  window.addEventListener("resize", function () {
    // A telephone that is turned has room for more columns, or for fewer.
    if (!printing && boxes.some(Look.turned)) changed();
  });

  // ---- one legend for the page: two variants, everywhere --------------------------------------
  var keys = Array.prototype.slice.call(document.querySelectorAll(".key"));
  var known = keys.map(function (key) { return key.dataset.variant; });
  var picked = [];
  function chosen() { return picked; }
  function pale(name) { return known.indexOf(name) >= 0 && picked.indexOf(name) < 0; }
  function follow() {
    changed();
    keys.forEach(function (key) {
      key.setAttribute("aria-pressed", String(picked.indexOf(key.dataset.variant) >= 0));
    });
    document.querySelectorAll("[data-variants]").forEach(function (part) {
      var names = part.dataset.variants.split("|");
      part.classList.toggle("pale", picked.length > 0
        && !names.some(function (name) { return picked.indexOf(name) >= 0; }));
    });
    var query = new URLSearchParams();
    ["variant", "against"].forEach(function (name, i) { if (picked[i]) query.set(name, picked[i]); });
    var text = query.toString();
    history.replaceState(null, "", location.pathname + (text ? "?" + text : "") + location.hash);
  }
  var asked = new URLSearchParams(location.search);
  ["variant", "against"].forEach(function (name) {
    var value = asked.get(name);
    if (known.indexOf(value) >= 0 && picked.indexOf(value) < 0) picked.push(value);
  });
  keys.forEach(function (key) {
    key.addEventListener("click", function () {
      var name = key.dataset.variant;
      // A third one takes the place of the second: the first stays what all are laid beside.
      if (picked.indexOf(name) >= 0) picked = picked.filter(function (one) { return one !== name; });
      else picked = picked.slice(0, 1).concat(name);
      follow();
    });
  });
  var none = document.getElementById("choose-none");
  if (none) none.addEventListener("click", function () { picked = []; follow(); });

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
      part.querySelectorAll(".js-plotly-plot").forEach(function (box) {
        if (Look.turned(box)) again(box); else Plotly.Plots.resize(box);
      });
    });
  });
  var folded = [];
  window.addEventListener("beforeprint", function () {
    printing = true;
    folded = Array.prototype.filter.call(document.querySelectorAll("details"), function (d) { return !d.open; });
    folded.forEach(function (part) { part.open = true; });
    boxes.forEach(function (box) { if (box.dataset.drawn) box.dataset.stale = "1"; draw(box); });
  });
  window.addEventListener("afterprint", function () {
    printing = false;
    folded.forEach(function (part) { part.open = false; });
    changed();
  });

  boxes.forEach(function (box) { box.style.minHeight = Look.spec(box).layout.height + "px"; });
  follow();
  var watch = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (!entry.isIntersecting) { near.delete(entry.target); return; }
      near.add(entry.target);
      draw(entry.target);
    });
  }, { rootMargin: "600px" });
  boxes.forEach(function (box) { watch.observe(box); });
}());
