{% include 'tables.js' %}
// Sorting, folding, choosing a baseline, hiding groups.
{
  const all = (selector, within = document) =>
    [...within.querySelectorAll(selector)];

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
      const task = select.closest('.task');
      for (const body of all('[data-baseline]', task))
        body.hidden = body.dataset.baseline !== select.value;
      const cells = all('.choices td', task);
      const base = new Map(cells
        .filter(({ dataset }) => dataset.group === select.value)
        .map((cell) => [cell.dataset.key, cell.textContent]));
      for (const cell of cells)
        cell.classList.toggle('differs', cell.textContent !== base.get(cell.dataset.key));
      for (const name of all('.chosen', task))
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
