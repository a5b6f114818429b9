"""Pages in Chromium, where it is installed (Debian: apt install chromium)."""

import pathlib
import re
import shutil
import subprocess

import pytest

_LISTEN = """<script>
const say = (what) => parent.postMessage(String(what), '*');
addEventListener('error', (event) => say('error ' + event.message));
addEventListener('unhandledrejection', (event) => say('error ' + event.reason));
addEventListener('securitypolicyviolation',
  (event) => say('error request ' + event.blockedURI));
console.error = (...words) => say('error ' + words.join(' '));
"""


def says(html: str, folder: pathlib.Path, width: int, script: str) -> list[str]:
  """Opens a page `width` pixels wide; what `script` says by `say(...)`.

  The page sits in a frame, since headless windows have a smallest width. Errors
  and requests that the page's policy forbids are said, too.
  """
  probe = f'{_LISTEN}{script}</script>'
  (folder / 'page.html').write_text(html.replace('<style>', probe + '<style>'))
  (folder / 'frame.html').write_text(
    f'<ul></ul><iframe src="page.html" width="{width}" height="900"></iframe>'
    '<script>addEventListener("message", (event) => {'
    ' const line = document.createElement("li");'
    ' line.textContent = event.data;'
    ' document.querySelector("ul").append(line); });</script>'
  )
  done = _run(folder, '--dump-dom', (folder / 'frame.html').as_uri())
  return re.findall(r'<li>(.*?)</li>', done)


def printed(page: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """A page as PDF file."""
  pdf = folder / 'page.pdf'
  _run(folder, f'--print-to-pdf={pdf}', page.as_uri())
  return pdf


def _run(folder: pathlib.Path, *arguments: str) -> str:
  """Chromium's standard output, from a fresh profile in `folder`."""
  browser = shutil.which('chromium') or shutil.which('chromium-browser')
  if browser is None:
    pytest.skip('Chromium is not installed (Debian: apt install chromium)')
  done = subprocess.run(
    [
      *(browser, '--headless', '--no-sandbox', '--disable-gpu'),
      *('--hide-scrollbars', '--disable-quic', '--no-first-run'),
      *('--disable-background-networking', '--disable-component-update'),
      '--disable-sync',
      f'--user-data-dir={folder / "profile"}',
      '--virtual-time-budget=20000',
      *arguments,
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  return done.stdout
