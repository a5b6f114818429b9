'use strict';
(async () => {
  const root = document.documentElement;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const color = (name) =>
    getComputedStyle(root).getPropertyValue('--' + name).trim();

  // Without this, and in print, all steps are shown at once.
  for (const player of all('.player')) {
    const [range, output] = player.children;
    const film = player.nextElementSibling;
    const show = () => {
      [...film.children].forEach((frame, at) =>
        frame.classList.toggle('now', at === range.valueAsNumber));
      output.textContent = film.querySelector('.now').dataset.step;
    };
    range.addEventListener('input', show);
    film.classList.add('sliding');
    player.hidden = false;
    show();
  }

  // Plotly travels compressed; unpacking needs no request.
  const packed = atob(document.getElementById('plotly').textContent);
  const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream()
    .pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  const touch = matchMedia('(pointer: coarse)').matches;
  const config = { displayModeBar: false, responsive: true };

  function themed(chart) {
    const scale = [[0, color('low')], [.5, color('middle')], [1, color('high')]];
    const steep = scale.map(([at, value]) => [at ** 2, value]);
    // Names under other keys are a user's, such as those of classes.
    const figure = JSON.parse(chart.dataset.chart, (key, value) =>
      /color(scale)?$/.test(key) && value[0] === '$'
        ? { $scale: scale, $steep: steep }[value] ?? color(value.slice(1)) : value);
    const { layout } = figure;
    const lines = {
      gridcolor: color('rule'), linecolor: color('rule'), zeroline: false,
      automargin: true, fixedrange: touch,
    };
    const map = figure.data[0].type === 'heatmap';
    const hidden = (root.dataset.hidden ?? '').split(' ');
    return [figure.data.filter((line) => !hidden.includes(line.legendgroup)), {
      paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color('muted') },
      margin: { l: 8, r: 8, t: 8, b: 8 },
      hovermode: map ? 'closest' : 'x unified',
      hoverlabel: { bgcolor: color('panel'), bordercolor: color('rule'), font: { color: color('ink') }, namelength: -1 },
      legend: { orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom' },
      dragmode: touch ? false : 'zoom',
      ...layout,
      xaxis: { ...lines, ...layout.xaxis },
      yaxis: { ...lines, ...layout.yaxis, ...(chart.dataset.axis && { type: chart.dataset.axis }) },
    }];
  }

  const draw = () => Promise.all(all('.chart').map((chart) =>
    Plotly.react(chart.querySelector('.plot'), ...themed(chart), config)));

  function chooseAxis(kind) {
    for (const button of all('.toggle button'))
      button.setAttribute('aria-pressed', button.dataset.axis === kind);
    for (const chart of all('.chart.capped')) chart.dataset.axis = kind;
  }
  for (const button of all('.toggle button'))
    button.addEventListener('click', () => { chooseAxis(button.dataset.axis); draw(); });
  chooseAxis('linear');
  await draw();

  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  addEventListener('redraw', draw);
  addEventListener('beforeprint', () => {
    root.dataset.theme = 'light';
    for (const part of all('details')) part.open = true;
    draw();
  });
  addEventListener('afterprint', () => { delete root.dataset.theme; draw(); });

  for (const search of all('.config input'))
    search.addEventListener('input', () => {
      const wanted = search.value.toLowerCase();
      for (const row of search.parentElement.querySelectorAll('tr'))
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
})();
