// Sorting, folding, choosing a baseline, hiding groups.
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

  for (const body of all('.results tbody')) {
    const members = all('.member', body).length;
    if (!members) continue;
    const button = document.createElement('button');
    button.className = 'unfold';
    const show = (folded) => {
      body.classList.toggle('folded', folded);
      button.setAttribute('aria-expanded', !folded);
      button.textContent = folded ? `show ${members} runs` : 'hide runs';
    };
    button.addEventListener('click', () =>
      show(!body.classList.contains('folded')));
    body.rows[0].cells[0].append(' ', button);
    show(true);
  }

  for (const select of all('.baseline select'))
    select.addEventListener('change', () => {
      for (const body of all('[data-baseline]'))
        body.hidden = body.dataset.baseline !== select.value;
      const cells = all('.choices td');
      const base = new Map(cells
        .filter(({ dataset }) => dataset.group === select.value)
        .map((cell) => [cell.dataset.key, cell.textContent]));
      for (const cell of cells)
        cell.classList.toggle('differs', cell.textContent !== base.get(cell.dataset.key));
      for (const name of all('.chosen'))
        name.textContent = select.selectedOptions[0].textContent;
    });

  const hidden = new Set();
  for (const button of all('.key button'))
    button.addEventListener('click', () => {
      const { group } = button.dataset;
      if (!hidden.delete(group)) hidden.add(group);
      for (const same of all(`.key [data-group="${group}"]`))
        same.setAttribute('aria-pressed', !hidden.has(group));
      document.documentElement.dataset.hidden = [...hidden].join(' ');
      dispatchEvent(new Event('redraw'));
    });
}
