#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# `cetkvm run` on a terminal: raw while the guest runs, the escape keys, and the terminal as it was
# afterwards, however the run ends. The guest echoes what it reads until a 'q'.
import os, pty, select, signal, subprocess, sys, tempfile, termios, time

here = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(here, '../lib'))
from tap import *

need_cetkvm()
try:
    os.close(pty.openpty()[0])
except OSError as e:
    skip_all('no pseudo-terminal: %s' % e)

scratch = tempfile.mkdtemp()
def guest(name):
    path = os.path.join(scratch, name)
    subprocess.check_call(['gcc', '-nostdlib', '-static', '-no-pie', '-Wl,--build-id=none', '-Wl,-z,noexecstack',
                           '-Wl,-Ttext-segment=0x100000', '-DGUEST=' + name, '-o', path, here + '/guests.S'])
    return path

# A run on a terminal of its own.
class Run:
    def __init__(self, kernel, shell=[]):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        def session():
            os.setsid()
            import fcntl
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen(
            shell + [cetkvm, 'run'] + os.environ.get('CETKVM_OPTIONS', '').split() +
            ['--mem', '64M', '--timeout', '30', '--kernel', kernel],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, preexec_fn=session)
        self.output = b''
    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    def is_restored(self):
        return termios.tcgetattr(self.slave)[:4] == self.before[:4]
    def child(self):
        with open('/proc/%d/task/%d/children' % (self.process.pid, self.process.pid)) as f:
            return int(f.read().split()[0])
    def type(self, text):
        os.write(self.master, text)
    def wait_for(self, condition, seconds=20):
        end = time.time() + seconds
        while time.time() < end:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.output += os.read(self.master, 4096)
                except OSError:
                    pass
            if condition():
                return True
        return False
    def end(self):
        self.wait_for(lambda: self.process.poll() is not None)
        return self.process.poll()

echo, hang = guest('echo'), guest('hang')

run = Run(echo)
ok(run.wait_for(run.is_raw), 'the terminal is raw while the guest runs')
run.type(b'ab\x03c')
ok(run.wait_for(lambda: b'ab\x03c' in run.output), 'keys reach the guest, Ctrl-C too', run.output)
run.type(b'\x01\x01z')
ok(run.wait_for(lambda: b'\x01z' in run.output), 'Ctrl-A Ctrl-A types one Ctrl-A', run.output)
run.type(b'q')
ok(run.end() == 7, 'the guest ends the run', run.process.poll())
ok(run.is_restored(), 'the terminal is as it was after the guest has ended')

run = Run(echo)
run.wait_for(run.is_raw)
run.type(b'\x01x')
ok(run.end() == 0, 'Ctrl-A x ends the run', run.process.poll())
ok(run.is_restored(), 'the terminal is as it was after Ctrl-A x')

run = Run(hang)
run.wait_for(run.is_raw)
run.type(b'\x01x')
ok(run.end() == 0, 'Ctrl-A x ends a guest that hangs', run.process.poll())

for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    run = Run(hang)
    run.wait_for(run.is_raw)
    run.process.send_signal(number)
    ok(run.end() == 128 + number, 'status after %s' % number.name, run.process.poll())
    ok(run.is_restored(), 'the terminal is as it was after %s' % number.name)

# Stopped and let go on by a shell with job control. SIGSTOP cannot be seen: the terminal is then taken
# again from whatever state the shell left it in.
for number in (signal.SIGTSTP, signal.SIGSTOP):
    run = Run(echo, ['bash', '-c', 'set -m; "$@"; stty sane; echo "stopped: $?"; read; fg >/dev/null; echo "ended: $?"', 'bash'])
    ok(run.wait_for(run.is_raw), 'raw under a shell')
    os.kill(run.child(), number)
    ok(run.wait_for(lambda: b'stopped: ' in run.output), '%s stops the run' % number.name, run.output)
    ok(not run.is_raw(), 'and the terminal is not raw')
    run.type(b'\n')
    ok(run.wait_for(run.is_raw), 'raw again when it goes on')
    run.type(b'xyzq')
    ok(run.wait_for(lambda: b'ended: 7' in run.output) and b'xyz' in run.output, 'and keys reach the guest', run.output)
    ok(run.end() == 0 and not run.is_raw(), 'the terminal is not raw after it')

# What a bug in cetkvm itself would look like.
for number in (signal.SIGSEGV, signal.SIGABRT):
    run = Run(hang)
    run.wait_for(run.is_raw)
    run.wait_for(lambda: b'H' in run.output)
    run.process.send_signal(number)
    ok(run.end() == -number, 'death by %s' % number.name, run.process.poll())
    ok(run.is_restored(), 'the terminal is as it was after %s' % number.name)

run = Run(guest('triple_fault'))
ok(run.end() == 3, 'status of a crash', run.process.poll())
ok(run.is_restored(), 'the terminal is as it was after a crash')

subprocess.call(['rm', '-rf', scratch])
done_testing()
