#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# The arrows of the design: which folder of src/ may include, and call into, which other. Calls go
# down the table, never up. Includes are read from the sources, calls from the undefined symbols of
# each folder's object files.
import glob, os, re, subprocess, sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'lib'))
from tap import *

MAY_CALL = {
    'base': set(),
    'xstate': {'base'},
    'cpu': {'xstate', 'base'},
    'irqchip': {'base'},
    'kvm': {'cpu', 'irqchip', 'xstate', 'base'},
    # The next two see KVM only as its clients do: through include/cetkvm/, the public API.
    'preload': {'base'},
    'vmm': {'base'},
    # A client of KVM by the same door as the VMM, and in need of its CPU models.
    'fleet': {'vmm', 'base'},
    'cli': {'vmm', 'fleet', 'preload', 'base'},
}
PUBLIC = re.compile(r'^cetkvm_')
PUBLIC_USERS = {'preload', 'vmm', 'cli'}

def check(good, name, details=()):
    ok(good, name, *details)

def folder_of(path):
    return os.path.relpath(path, os.path.join(top, 'src')).split(os.sep)[0]

folders = sorted(d for d in os.listdir(os.path.join(top, 'src')) if os.path.isdir(os.path.join(top, 'src', d)))
check(set(folders) <= set(MAY_CALL), 'every folder of src/ is in the table',
      ['not in the table: ' + d for d in folders if d not in MAY_CALL])

for folder in folders:
    allowed = MAY_CALL.get(folder, set()) | {folder}
    wrong = []
    for path in sorted(glob.glob(os.path.join(top, 'src', folder, '**', '*.[chS]'), recursive=True)):
        for number, line in enumerate(open(path, errors='replace'), 1):
            m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not m:
                continue
            target = m.group(1)
            beside = os.path.join(os.path.dirname(path), target)
            if os.path.exists(beside):
                to = folder_of(os.path.realpath(beside))
            else:
                to = target.split('/')[0]
            if to in MAY_CALL and to not in allowed:
                wrong.append('%s:%d includes %s' % (os.path.relpath(path, top), number, target))
    check(not wrong, 'includes of src/%s stay below it' % folder, wrong)

# Object files carry the folder they come from in their path: build/src/FOLDER/lib....p/*.o
defined, wanted = {}, {}
for obj in glob.glob(os.path.join(build, 'src', '*', '*.p', '**', '*.o'), recursive=True):
    if '-guest.p' in obj:  # a program of its own, with its own memset()
        continue
    folder = os.path.relpath(obj, os.path.join(build, 'src')).split(os.sep)[0]
    out = subprocess.run(['nm', obj], capture_output=True, text=True).stdout
    for line in out.splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[0] == 'U':
            wanted.setdefault(folder, {}).setdefault(parts[1], os.path.basename(obj))
        elif len(parts) == 3 and parts[1] in 'TDBRVW':
            defined.setdefault(parts[2], set()).add(folder)
if not defined:
    count += 1
    print('ok %d - calls # SKIP nothing is built in %s' % (count, os.path.basename(build)))
else:
    # What src/preload puts in the place of the C library's functions is the C library's to everybody else.
    for symbol in re.findall(r'\b(\w+);', open(os.path.join(top, 'src/preload/exports.map')).read()):
        if symbol in defined:
            defined[symbol].discard('preload')
            if not defined[symbol]:
                del defined[symbol]
    for folder in folders:
        allowed = MAY_CALL.get(folder, set()) | {folder}
        wrong = []
        for symbol, obj in sorted(wanted.get(folder, {}).items()):
            to = defined.get(symbol)
            # Names that are not exported may be in two folders: one's own counts.
            if to is None or to & allowed or symbol.startswith('__'):
                continue
            if PUBLIC.match(symbol) and folder in PUBLIC_USERS and 'kvm' in to:
                continue
            wrong.append('%s calls %s of src/%s' % (obj, symbol, ' and '.join(sorted(to))))
        check(not wrong, 'calls from src/%s go down' % folder, wrong)

done_testing()
