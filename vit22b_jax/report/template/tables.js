// Sorting of tables, and the errors beyond the first.
{
  const all = (selector, within = document) =>
    [...within.querySelectorAll(selector)];

  // A cell's number, its text if that is none, null if it is missing.
  function valued(cell) {
    const { dataset, textContent } = cell;
    if (dataset.value !== undefined && dataset.value !== 'nan')
      return parseFloat(dataset.value.replace('inf', 'Infinity'));
    if (cell.matches('.number')) return null;
    const text = textContent.trim();
    return text === '' || isNaN(text) ? text : Number(text);
  }

  // Numbers by value, then texts in the language's order, then what is missing.
  function compared(a, b, column, sign) {
    const [left, right] = [a, b].map((row) => valued(row.cells[column]));
    if (left === null || right === null)
      return (left === null) - (right === null);
    if (typeof left !== typeof right)
      return typeof left === 'number' ? -1 : 1;
    if (typeof left === 'number') return sign * (left - right);
    return sign * left.localeCompare(right, 'en', { numeric: true });
  }

  for (const table of all('.sortable')) {
    const heads = [...table.tHead.rows[0].cells];
    // Groups move with their members; elsewhere rows move within their body.
    const lists = table.matches('.results')
      ? [[table, [...table.tBodies], (body) => body.rows[0]]]
      : [...table.tBodies].map((body) => [body, [...body.rows], (row) => row]);

    heads.forEach((head, column) => {
      const button = document.createElement('button');
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute('aria-sort', 'none');
      button.addEventListener('click', () => {
        const next = { none: 'ascending', ascending: 'descending', descending: 'none' };
        const order = next[head.getAttribute('aria-sort')];
        for (const other of heads) other.setAttribute('aria-sort', 'none');
        head.setAttribute('aria-sort', order);
        const sign = { none: 0, ascending: 1, descending: -1 }[order];
        for (const [parent, given, row] of lists)
          parent.append(...(sign ? given.toSorted((a, b) =>
            compared(row(a), row(b), column, sign)) : given));
      });
    });
  }

  // Cards are made as they are asked for: there may be thousands.
  for (const list of all('[data-errors]')) {
    const errors = JSON.parse(list.dataset.errors);
    const [search, more] = ['input', 'button'].map((name) =>
      list.parentElement.querySelector(name));
    let found = errors;
    const line = (name, text) => {
      const part = document.createElement(name);
      part.textContent = text;
      return part;
    };
    const percent = (part) =>
      part === undefined ? '' : `${Math.round(100 * part)}%`;
    const add = () => {
      const first = list.children.length;
      for (const one of found.slice(first, first + 96)) {
        const card = document.createElement('li');
        card.className = 'wrong';
        for (const src of one.sources)
          card.append(Object.assign(new Image(), { src, alt: one.true }));
        card.append(line('b', `✗ ${one.predicted}`), ' ',
          line('span', percent(one.probability)),
          line('small', `true: ${one.true} ${percent(one.probability_true)}`),
          line('small', `image ${one.place}`));
        list.append(card);
      }
      more.hidden = list.children.length >= found.length;
    };
    search.addEventListener('input', () => {
      const wanted = search.value.toLowerCase();
      found = errors.filter((one) =>
        `${one.true} ${one.predicted}`.toLowerCase().includes(wanted));
      list.replaceChildren();
      add();
    });
    more.addEventListener('click', add);
    add();
  }
}
