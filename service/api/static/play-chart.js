// Charts, drawn by uPlot, in the colours of the page.

/* global uPlot */

const charts = new Map();
// A chart is as wide as its place, also when that changes.
const resized = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const chart = charts.get(target);
    if (chart && contentRect.width > 0) chart.setSize({ width: contentRect.width, height: chart.height });
  }
});

/** The colours of the page as they are now, light or dark. */
export function chartColours() {
  const style = getComputedStyle(document.body);
  const read = (name) => style.getPropertyValue(name).trim();
  return { text: style.color, accent: read("--accent"), band: read("--band") };
}

/** Draw into `place`, in the stead of what was there. `data` begins with the values of x, in seconds where `isDated`. */
export function drawChart(place, { series, data, bands = [], height, isDated = false, range }) {
  const { text } = chartColours();
  const axis = { stroke: text, grid: { stroke: "rgba(128, 128, 128, 0.2)", width: 1 }, ticks: { stroke: "rgba(128, 128, 128, 0.4)" } };
  const options = {
    width: place.clientWidth || 300,
    height,
    series,
    bands,
    scales: { x: { time: isDated }, ...(range ? { y: { range } } : {}) },
    axes: [axis, { ...axis, size: 64 }],
    legend: { show: false },
    cursor: { drag: { x: false, y: false } },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
  };
  charts.get(place)?.destroy();
  charts.set(place, new uPlot(options, data, place));
  resized.observe(place);
}
