# SPDX-License-Identifier: MIT
"""TAP for tests written in Python. The plan is printed by done_testing().

ok(good, name, *details)     pass if good; a failure shows the details
equal(got, wanted, name)     pass if equal; a failure shows both
skip_all(reason)             the whole test needs something that is not here
"""
import os, sys

top = os.path.realpath(os.path.join(os.path.dirname(__file__), '..', '..'))
build = os.environ.get('CETKVM_BUILD', os.path.join(top, 'build'))
cetkvm = os.path.join(build, 'src/cli/cetkvm')
count = failed = 0

def ok(good, name, *details):
    global count, failed
    count += 1
    failed += not good
    print('%s %d - %s' % ('ok' if good else 'not ok', count, name), flush=True)
    if not good:
        for d in details:
            print('#   ' + str(d).replace('\n', '\n#   '))

def equal(got, wanted, name):
    ok(got == wanted, name, 'wanted: %r' % (wanted,), 'got:    %r' % (got,))

def skip_all(reason):
    print('1..0 # SKIP ' + reason)
    sys.exit(0)

def need_cetkvm():
    if not os.access(cetkvm, os.X_OK):
        skip_all('cetkvm is not built')

def done_testing():
    print('1..%d' % count)
    sys.exit(failed != 0)
