#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# What every file in the tree owes: a licence line, no path of the machine it was written on, and
# text that a terminal can show.
import os, re, subprocess, sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'lib'))
from tap import *

listing = subprocess.run(['git', '-C', top, 'ls-files', '-z'], capture_output=True)
if listing.returncode != 0:
    skip_all('not a git checkout')
files = [f for f in listing.stdout.decode().split('\0') if f and os.path.isfile(os.path.join(top, f))]

def check(wrong, name):
    ok(not wrong, name, *wrong[:20])

def text(f):
    return open(os.path.join(top, f), encoding='utf-8', errors='surrogateescape').read()

source = re.compile(r'\.(c|h|S|py|sh|t|ld)$')
def is_source(f):
    return bool(source.search(f)) or text(f).startswith('#!')

check([f for f in files if is_source(f) and
       'SPDX-License-Identifier: MIT' not in '\n'.join(text(f).splitlines()[:3])],
      'every source file names its licence in its first lines')

# Where this checkout lies, and the usual homes of people and build machines. The directory above
# a checkout at the root of the file system says nothing.
homes = [r'/home/\w+/', r'/root/', r'/Users/\w+/']
above = os.path.dirname(top)
if above.count('/') >= 1 and above not in ('/', '/tmp'):
    homes.append(re.escape(above + '/'))
pattern = re.compile('|'.join(homes))
check(['%s:%d: %s' % (f, n, line.strip()[:80]) for f in files if f != 'tests/hygiene.t'
       for n, line in enumerate(text(f).splitlines(), 1) if pattern.search(line)],
      'no absolute path of a machine')

check(['%s:%d' % (f, n) for f in files if re.search(r'\.(c|h|S)$', f)
       for n, line in enumerate(text(f).splitlines(), 1) if line.rstrip() != line],
      'no white space at the end of a line of C')

check([f for f in files if os.path.getsize(os.path.join(top, f)) > 300000],
      'no big file (binaries are built or fetched, not kept)')

done_testing()
