#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# `cetkvm fleet` on each scenario that comes along: what became of every component, on every host, as the
# guest saw it; the reports in JSON and as a page.
import html.parser, json, os, re, subprocess, sys, tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'lib'))
from tap import *

need_cetkvm()

def fleet(*args):
    return subprocess.run([cetkvm, 'fleet', *args], capture_output=True, text=True, timeout=120)

ALWAYS = ['general-registers', 'segments', 'control-registers', 'debug-registers', 'msrs', 'xcr0', 'x87', 'sse', 'avx']
CET = ['cet-u', 'cet-s', 's-cet', 'shadow-stack', 'user-shadow-stack']
XSAVE = ['x87', 'sse', 'avx', 'avx512', 'pkru', 'amx']

def fates(step):
    return {c['name']: c['fate'] for c in step['components'] if c['fate'] != 'unused'}

# What is not named in a step has the fate of `rest`.
def step(outcome, rest, **named):
    by_name = {}
    for fate, names in named.items():
        for n in names:
            by_name[n] = fate
    return outcome, rest, by_name

SREGS = ['segments', 'control-registers']
# Nothing is loaded after KVM_SET_XSAVE: registers that are there have wrong values, what has to be
# enabled first is off.
DAMAGE = step('corrupted', 'lost', kept=['general-registers'] + SREGS,
              corrupted=['msrs', 'xcr0', 'x87', 'sse'])
REFUSED_XSAVE = step('refused', 'stayed', refused=XSAVE)
KEPT = step('intact', 'kept')

# Scenario: whether the guest has CET, PKU; the steps behind the first; ioctl and components of the refusal.
PKRU = 0x200
SCENARIOS = {
    'oversaved-to-strict':      ('refused', True, False, [REFUSED_XSAVE], 'KVM_SET_XSAVE'),
    'silent-corruption':        ('corrupted', True, False, [DAMAGE], 'KVM_SET_XSAVE'),
    'oversaved-to-constrained': ('intact', True, False, [KEPT], None),
    'no-kernel-fix':            ('refused', True, False, [REFUSED_XSAVE], 'KVM_SET_XSAVE'),
    'no-kernel-fix-ignored':    ('corrupted', True, False, [DAMAGE], 'KVM_SET_XSAVE'),
    'trimmed-on-the-way':       ('intact', True, False, [KEPT, KEPT], None),
    'newer-to-older':           ('refused', True, False, [REFUSED_XSAVE], 'KVM_SET_XSAVE'),
    'mixed-pool':               ('intact', False, False, [KEPT, KEPT, KEPT], None),
    'feature-lost-in-upgrade':  ('refused', True, True, [REFUSED_XSAVE], 'KVM_SET_XSAVE'),
    'cet-fleet':                ('intact', True, True, [KEPT, KEPT, KEPT], None),
    'amx-to-no-amx':            ('refused', True, True, [step('refused', 'stayed')], 'KVM_SET_CPUID2'),
    'cet-to-no-cet':            ('refused', True, True, [step('refused', 'stayed', refused=SREGS)], 'KVM_SET_SREGS'),
    'cet-to-no-cet-ignored':    ('crashed', True, True, [step('crashed', 'lost')], 'KVM_SET_SREGS'),
    'ssp-forgotten':            ('crashed', True, True, [step('crashed', 'kept', corrupted=['shadow-stack'])], None),
}

class Page(html.parser.HTMLParser):
    VOID = {'meta', 'br', 'path', 'link', 'img'}
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.problems, self.tags, self.cells, self.text = [], [], [], [], ''
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == 'td':
            self.cells.append([dict(attrs).get('class'), ''])
    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append('unexpected </%s> at %r' % (tag, self.getpos()))
    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == 'td':
            self.cells[-1][1] += data

def check_page(source, report, name):
    page = Page()
    page.feed(source)
    page.close()
    ok(not page.problems and not page.open, name + ': every element of the page is closed', page.problems, page.open)
    loading = [t for t, a in page.tags if t in ('script', 'link', 'img', 'iframe', 'object', 'embed')
               or 'src' in a or 'href' in a or any(k.startswith('on') for k in a)]
    ok(not loading and 'url(' not in source and '@import' not in source, name + ': the page loads and runs nothing', loading)
    wanted = [f for i in range(len(report['steps'][0]['components']))
              for f in [s['components'][i]['fate'] for s in report['steps']]
              if report['steps'][0]['components'][i]['fate'] != 'unused']
    equal([c[1] for c in page.cells], wanted, name + ': the matrix of the page has the words of the report')
    ok(all(c[0] == c[1] for c in page.cells), name + ': and their colours')
    ok(report['title'] in page.text and report['summary'] in page.text, name + ': title and summary')

scratch = tempfile.TemporaryDirectory()
listing = fleet('--list')
equal(sorted(l.split()[0] for l in listing.stdout.splitlines()), sorted(SCENARIOS), '--list names what this test knows')

for name, (outcome, cet, pku, steps, refused) in SCENARIOS.items():
    j, h = os.path.join(scratch.name, name + '.json'), os.path.join(scratch.name, name + '.html')
    run = fleet(name, '--json', j, '--html', h)
    ok(run.returncode == 0, name + ': ends as it expects', run.stdout, run.stderr)
    try:
        report = json.load(open(j, encoding='utf-8'))
    except Exception as e:
        ok(False, name + ': JSON', e)
        continue
    equal(report['outcome'], outcome, name + ': outcome')
    first = fates(report['steps'][0])
    for c in ALWAYS + (CET if cet else []):
        ok(first.get(c) == 'set', '%s: the guest leaves a pattern in %s' % (name, c))
    equal('pkru' in first, pku, name + ': in PKRU if it has it')
    if not cet:
        ok(not set(CET) & set(first), name + ': no CET state in a guest without')
    equal(len(report['steps']) - 1, len(steps), name + ': steps')
    for s, (want, rest, named) in zip(report['steps'][1:], steps):
        where = '%s on %s' % (name, s['host'])
        equal(s['outcome'], want, where + ': outcome')
        equal(fates(s), {c: named.get(c, rest) for c in first}, where + ': every component')
        if want == 'intact':
            equal((s['guest']['end'], s['guest'].get('returned')), ('reported', s['guest'].get('open_calls')),
                  where + ': the guest said so, and every open call returned')
            ok(all(c['guest'] == 'same' and c['ioctls'] == 'same' for c in s['components'] if c['fate'] != 'unused'),
               where + ': guest and ioctls agree')
    last = report['steps'][-1]
    equal(last['refused'] and last['refused']['ioctl'], refused, name + ': which ioctl refused it')
    if refused:
        equal(last['refused']['error'], 'EPERM' if refused == 'KVM_SET_CPUID2' else 'EINVAL', name + ': which error')
    if outcome == 'refused':
        back = report['back_on_source']
        equal((back['outcome'], set(fates(back).values())), ('intact', {'kept'}), name + ': the guest goes on unharmed where it was')
        ok(last['guest']['end'] == 'not-run', name + ': and never runs on the new host')
    else:
        equal(report['back_on_source'], None, name + ': nothing went back')
    check_page(open(h, encoding='utf-8').read(), report, name)
    matrix = [l for l in run.stdout.splitlines() if re.match(r'(general registers|x87|shadow stack) ', l)]
    ok(matrix and all(report['steps'][-1]['outcome'] for l in matrix) and report['summary'] in run.stdout,
       name + ': table and summary on the terminal')

# What the seed of each scenario is.
def load(name):
    return json.load(open(os.path.join(scratch.name, name + '.json')))

s = load('silent-corruption')['steps'][1]
equal(int(s['xstate_bv'], 16) & PKRU, PKRU, 'silent-corruption: PKRU is in the image')
equal((int(s['not_the_guests'], 16), int(s['not_the_hosts'], 16)), (PKRU, 0), 'and it is the host that has it, not the guest')
equal((s['guest']['end'], s['guest'].get('returned')), ('reported', 13), 'the guest runs on: nobody tells it')
s = load('no-kernel-fix')['steps'][1]
equal((int(s['not_the_guests'], 16), int(s['not_the_hosts'], 16)), (PKRU, PKRU), 'no-kernel-fix: nor has the new host')
s = load('amx-to-no-amx')['steps'][1]
equal((int(s['not_the_guests'], 16), int(s['not_the_hosts'], 16)), (0, 0x60000), 'amx-to-no-amx: the tiles')
s = load('trimmed-on-the-way')['steps']
equal([int(x['xstate_bv'], 16) & PKRU for x in s], [0, PKRU, 0], 'trimmed-on-the-way: PKRU is gone from the second image')
s = load('ssp-forgotten')['steps'][1]['guest']
equal((s['end'], s['exception'], s['returned']), ('exception', 14, 0), 'ssp-forgotten: #PF at the first return')
s = load('cet-to-no-cet')['steps'][1]
equal(s['missing_features'], ['shstk', 'ibt'], 'cet-to-no-cet: the report names what the host lacks')

done_testing()
