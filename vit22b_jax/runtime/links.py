"""Connections between a job's processes, so that none waits for a dead one.

    links.open_all(host, share)       # in every process
    links.finish(code)                # the last word of each, when all agree
    links.give_up(error)              # a collective failed: why?

A process that waits in a collective for one that was killed waits for minutes,
or for ever, and jax's own heartbeat ends it with a core dump. So every process
keeps a TCP connection to the first, which tells the others. The kernel closes
the connections of a process that dies, and a machine that is gone falls silent;
whoever hears of either says so and ends with exit code LOST.

Leaving is announced with its exit code, and who has finished waits for all.
Codes that all processes meet together are nobody's loss; an error in one
process alone ends the others with its code, after the seconds they have to meet
the same error: a launcher must not take it for a loss, and start again.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from vit22b_jax import errors

LOST = 4  # exit code: another process was lost
SILENCE = 30.0  # seconds after which a process that says nothing is lost
_BEAT = 5.0
_GRACE = 10.0  # seconds in which processes end that meet the same end
_UNKNOWN_SECONDS = 30.0  # that a host's name may take to become known
_ALL_CAME = b'!'
_SIGNALS = (130, 143)
_TOGETHER = (0, 3)  # done, or stopped by what the training itself met
_RESUME = (
  'Checkpoints are whole, and the same command (in every process) resumes '
  'from the newest.'
)

_links: '_Links | None' = None  # one to a process, as jax.distributed is


def connect(host: str, port: int, seconds: float) -> socket.socket:
  """A connection to a port that may not be open yet.

  Raises:
    socket.gaierror: no machine is known by that name, for some seconds.
    OSError: it wasn't within those seconds.
  """
  start = time.monotonic()
  while True:
    try:
      return socket.create_connection((host, port), timeout=min(seconds, 10))
    except OSError as error:
      unknown = isinstance(error, socket.gaierror)
      allowed = min(seconds, _UNKNOWN_SECONDS) if unknown else seconds
      if time.monotonic() - start > allowed:
        raise
      time.sleep(0.2)


def _serve(port: int, backlog: int) -> socket.socket:
  """Listens on a port, for IPv4 and, where there is one, IPv6."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ('', port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
    )
  return socket.create_server(('', port), backlog=backlog)


def await_all(port: int, count: int, seconds: float) -> None:
  """In the first process, waits until all the others have come to its port.

  Raises:
    OSError: some did not come, or the port can't be used.
    UserError: one came that isn't of this job, or two that are the same.
  """
  come: dict[int, socket.socket] = {}
  end = time.monotonic() + seconds
  with _serve(port, count) as server:
    while len(come := _still_there(come)) < count - 1:
      server.settimeout(max(end - time.monotonic(), 0.01))
      try:
        connection = server.accept()[0]
      except TimeoutError:
        missing = sorted({*range(1, count)} - {*come})
        raise TimeoutError(f'processes {missing[:20]} did not come') from None
      connection.settimeout(5)
      try:
        index, theirs = map(int, connection.recv(32).split())
      except (OSError, ValueError):
        connection.close()  # somebody else
        continue
      come = _still_there(come)
      problem = _refusal(index, theirs, count, come)
      if problem:
        _answer([*come.values(), connection], problem.encode())
        raise errors.UserError(problem)
      come[index] = connection
  _answer(come.values(), _ALL_CAME)


def _answer(connections: Iterable[socket.socket], text: bytes) -> None:
  for connection in connections:
    with contextlib.closing(connection), contextlib.suppress(OSError):
      connection.sendall(text)


def _refusal(
  index: int, theirs: int, count: int, come: Mapping[int, socket.socket]
) -> str:
  """Why a process that came isn't one that is waited for; '' if it is."""
  if theirs != count:
    return (
      f'Process {index} has --num_processes={theirs}, and process 0 has '
      f'{count}: give all the same.'
    )
  if not 0 < index < count:
    return f'--process_id={index}: expected 1 to {count - 1} beside process 0.'
  if index in come:
    return (
      f'Two processes have --process_id={index}: give each another one, from 0 '
      f'to {count - 1}.'
    )
  return ''


def _still_there(come: dict[int, socket.socket]) -> dict[int, socket.socket]:
  """Those that haven't ended meanwhile; they may be started anew."""
  gone = [index for index, connection in come.items() if _has_gone(connection)]
  for index in gone:
    come[index].close()
  return {i: connection for i, connection in come.items() if i not in gone}


def _has_gone(connection: socket.socket) -> bool:
  """Whether the process at the other end ended, as one started anew has."""
  connection.setblocking(False)
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True


def report_to(
  host: str, port: int, me: int, count: int, seconds: float
) -> None:
  """In another process, waits until the first one has met all.

  Raises:
    OSError: it isn't there, or not all have come.
    UserError: some process, maybe this one, was started otherwise than the
      first expects.
  """
  end = time.monotonic() + seconds
  with connect(host, port, seconds) as connection:
    connection.sendall(b'%d %d' % (me, count))
    connection.settimeout(max(end - time.monotonic(), 0.01) + 5)
    answer = connection.recv(1024)
  if not answer:
    raise ConnectionError('process 0 did not meet all the others')
  if answer != _ALL_CAME:
    raise errors.UserError(answer.decode(errors='replace'))


def open_all(host: str | None, share: Callable[[Any], Any]) -> None:
  """Connects every process with the first.

  Args:
    host: where the first process is, if that is known.
    share: gives every process the value of the first.
  """
  global _links
  place, server = None, None
  if jax.process_index() == 0:
    server = _serve(0, jax.process_count())
    place = [
      host or _own_address(),
      server.getsockname()[1],
      secrets.token_hex(8),
    ]
  host, port, token = share(place)
  if server:
    _links = _First(server, token)
  else:
    _links = _Other(connect(host, port, SILENCE), token)
  threading.Thread(target=_links.listen, daemon=True).start()


def _own_address() -> str:
  """This machine's address in its network; nothing is sent."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('10.255.255.255', 1))
      return probe.getsockname()[0]
    except OSError:
      return '127.0.0.1'


def expect(code: int) -> None:
  """Says that all processes have agreed to end with this code."""
  if _links:
    _links.expected = code


def complain(text: str, code: int) -> None:
  """Prints the error that this process ends with.

  Of several processes that all end with it, the first prints it alone. One of
  several ends here, without unwinding what may wait for the others.
  """
  if not _links:
    print(text, file=sys.stderr)
    return
  sys.stdout.flush()
  end = _links.meet if code in _TOGETHER else _links.leave
  if not _links.me:
    print(text, file=sys.stderr, flush=True)
    end(code, text)
  elif not end(code, text):
    print(f'process {_links.me}: {text}', file=sys.stderr, flush=True)
  os._exit(code)


def finish(code: int) -> None:
  """The end of a process whose others end with the same code.

  Waits until all have come to it, as jax ends a process badly when another is
  gone; the first may have a report to write, or a disk may be slow.
  """
  if not _links:
    return
  expect(code)
  _links.meet(code, '')
  if code == 0:
    jax.distributed.shutdown()
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def exit_now(code: int) -> None:
  """Ends the whole job: a signal came while there was nothing to save."""
  if _links:
    _links.leave(code, '')
  os._exit(code)


def give_up(error: Exception) -> None:
  """Ends one process of several, in which something failed.

  When another process is lost, `listen` hears of it and says so; else the error
  is this process's own. Nothing is unwound: threads may wait for the others.
  """
  if not _links:
    return
  lost = _looks_lost(error)
  if lost and _links.ended.wait(3 * _BEAT):
    time.sleep(2 * _GRACE)  # whoever heard of it is ending this process
  traceback.print_exception(error)
  if not lost:
    complain(f'error: {type(error).__name__}', 1)
  _links.stop(
    LOST,
    f'Process {_links.me} lost the others: {str(error).strip()[:500]}. '
    f'{_RESUME}',
  )


def _looks_lost(error: Exception) -> bool:
  """Whether it came from a collective or a barrier, not from a file or socket.

  Orbax raises a TimeoutError for its barriers, from what jax raised.
  """
  kinds = (error, error.__cause__)
  if not any(isinstance(x, jax.errors.JaxRuntimeError) for x in kinds):
    return False
  text = str(error).lower()
  signs = ('gloo', 'nccl', 'connection', 'unavailable', 'deadline', 'barrier')
  return any(sign in text for sign in signs)


class _Peer:
  """What is known of the process at the other end of a connection."""

  def __init__(self, connection: socket.socket):
    connection.settimeout(_BEAT)
    self.connection = connection
    self.index: int | None = None
    self.heard = time.monotonic()
    self.buffer = b''
    self.left: tuple[int, str] | None = None
    self._lock = threading.Lock()

  def send(self, **message: Any) -> None:
    """A line of JSON; what can't be sent shows when nothing is heard."""
    try:
      with self._lock:
        self.connection.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      return

  def has_come_to(self, code: int) -> bool:
    """Whether its end fits to one with this code: no error of its own."""
    return self.left is not None and self.left[0] in (code, *_TOGETHER)

  def read(self) -> list[dict[str, Any]] | None:
    """The messages that have come; None at the end of the connection."""
    try:
      data = self.connection.recv(1 << 16)
    except OSError:
      return None
    if not data:
      return None
    self.heard = time.monotonic()
    *lines, self.buffer = (self.buffer + data).split(b'\n')
    return [json.loads(line) for line in lines]


class _Links:
  """Both ends of the connections.

  Attributes:
    me: this process.
    expected: the exit code that all have agreed on.
    ended: set once this process is ending.
  """

  def __init__(self, me: int, token: str):
    self.me = me
    self.expected: int | None = None
    self.ended = threading.Event()
    self._token = token
    self._leaving: tuple[int, str] | None = None
    self._lock = threading.Lock()
    self._selector = selectors.DefaultSelector()
    self._peers: dict[int, _Peer] = {}

  def listen(self) -> None:
    """Hears the others until the process ends; runs on a thread of its own."""
    next_beat = 0.0
    while True:
      for key, _ in self._selector.select(timeout=1.0):
        self._ready(key)
      now = time.monotonic()
      if now >= next_beat:
        next_beat = now + _BEAT
        for peer in list(self._peers.values()):
          peer.send()
      for index, peer in list(self._peers.items()):
        if not peer.left and now - peer.heard > SILENCE:
          self._lost(index, f'said nothing for {SILENCE:.0f} s')

  def _ready(self, key: selectors.SelectorKey) -> None:
    self._hear(key.data)

  def _hear(self, peer: _Peer) -> None:
    try:
      messages = peer.read()
      for message in messages or ():
        self._handle(peer, message)
    except (ValueError, AttributeError, KeyError, TypeError):
      if peer.index is not None:
        raise
      messages = None  # somebody else, a scan of ports or a browser
    if messages is None:
      self._selector.unregister(peer.connection)
      peer.connection.close()
      if peer.index is not None and not peer.left:
        self._lost(peer.index, 'was killed, or its machine is gone')

  def _handle(self, peer: _Peer, message: dict[str, Any]) -> None:
    raise NotImplementedError

  def _has_left(self, index: int, code: int) -> None:
    """A process ended by its own will: is that the end of all?"""
    if code in _TOGETHER or code == self.expected or self._leaving:
      return
    threading.Thread(
      target=self._follow, args=(index, code), daemon=True
    ).start()

  def _follow(self, index: int, code: int) -> None:
    if self.ended.wait(0 if code in _SIGNALS else _GRACE):
      return
    if self.expected == code:
      return
    if code in _SIGNALS:
      what = 'SIGINT' if code == 130 else 'SIGTERM'
      self.stop(code, f'Stopped by {what}, which process {index} heard.', '')
    self.stop(
      code,
      f'Process {index} ended with an error (exit code {code}), which its own '
      f'output tells of; process {self.me} stops. {_RESUME}',
    )

  def _lost(self, index: int, why: str) -> None:
    if self._leaving:
      return
    self._tell_lost(index, why)
    self.stop(
      LOST, f'Process {index} {why}; process {self.me} stops. {_RESUME}'
    )

  def _tell_lost(self, index: int, why: str) -> None:
    pass

  def stop(self, code: int, text: str, kind: str = 'error: ') -> None:
    """Prints why and ends the process, whatever its threads wait for."""
    with self._lock:  # once
      self.ended.set()
      sys.stdout.flush()
      print(f'\n{kind}{text}', file=sys.stderr, flush=True)
      for peer in list(self._peers.values()):
        peer.send(left=code, index=self.me, text=text)
      if not self.me:  # jax ends the others badly when the first is gone
        time.sleep(1)
      os._exit(code)

  def meet(self, code: int, text: str) -> bool:
    """Leaves when all do, however long some take; hears of a lost one.

    Args:
      code: that all have agreed on.
      text: see `leave`.

    Returns:
      As `leave`.
    """
    raise NotImplementedError

  def leave(self, code: int, text: str) -> bool:
    """Tells the others that this process ends; waits for them a little.

    Args:
      code: the exit code.
      text: the error that it ends with, if any.

    Returns:
      Whether the first process ends with the same error, and has printed it.
    """
    if self._leaving is None:
      self._leaving = code, text
      self.ended.set()
      for peer in list(self._peers.values()):
        peer.send(left=code, index=self.me, text=text)
    return self._wait_for_others(code, text)

  def _wait_for_others(self, code: int, text: str) -> bool:
    raise NotImplementedError


class _First(_Links):
  """The first process, to which all others connect."""

  def __init__(self, server: socket.socket, token: str):
    super().__init__(0, token)
    self._count = jax.process_count() - 1
    self._selector.register(server, selectors.EVENT_READ, None)

  def _ready(self, key: selectors.SelectorKey) -> None:
    if key.data is not None:
      self._hear(key.data)
      return
    try:
      peer = _Peer(key.fileobj.accept()[0])
    except OSError:  # it has gone again
      return
    self._selector.register(peer.connection, selectors.EVENT_READ, peer)

  def _handle(self, peer: _Peer, message: dict[str, Any]) -> None:
    if peer.index is None:
      if message.get('token') == self._token:
        peer.index = message['index']
        self._peers[peer.index] = peer
        if self._leaving:
          code, text = self._leaving
          peer.send(left=code, index=0, text=text)
      return
    if 'left' in message:
      peer.left = message['left'], message['text']
      for index, other in list(self._peers.items()):
        if index != peer.index:
          other.send(**message)
      self._has_left(peer.index, message['left'])

  def _tell_lost(self, index: int, why: str) -> None:
    for peer in list(self._peers.values()):
      peer.send(lost=index, why=why)

  def meet(self, code: int, text: str) -> bool:
    while not self._all_left(code):
      time.sleep(0.05)
    return self.leave(code, text)

  def _all_left(self, code: int) -> bool:
    left = [peer.has_come_to(code) for peer in list(self._peers.values())]
    return sum(left) >= self._count

  def _wait_for_others(self, code: int, text: str) -> bool:
    """jax ends the others badly when the first process is gone."""
    end = time.monotonic() + _GRACE + 2
    while not self._all_left(code) and time.monotonic() < end:
      time.sleep(0.05)
    time.sleep(0.2)
    return False


class _Other(_Links):
  """Any other process, connected to the first."""

  def __init__(self, connection: socket.socket, token: str):
    super().__init__(jax.process_index(), token)
    first = _Peer(connection)
    first.index = 0
    self._peers[0] = first
    self._selector.register(connection, selectors.EVENT_READ, first)
    first.send(token=token, index=self.me)

  def _handle(self, peer: _Peer, message: dict[str, Any]) -> None:
    if 'lost' in message:
      self._lost(message['lost'], message['why'])
    elif 'left' in message:
      if message['index'] == 0:
        peer.left = message['left'], message['text']
      self._has_left(message['index'], message['left'])

  def meet(self, code: int, text: str) -> bool:
    self._peers[0].send(left=code, index=self.me, text=text)
    while not self._peers[0].has_come_to(code):
      time.sleep(0.05)
    return self.leave(code, text)

  def _wait_for_others(self, code: int, text: str) -> bool:
    """Until the first process has said what it ends with."""
    end = time.monotonic() + _GRACE / 2
    while text and self._peers[0].left is None and time.monotonic() < end:
      time.sleep(0.05)
    return self._peers[0].left is not None and self._peers[0].left[1] == text
