#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# The descriptions that `cetkvm fleet` reads: what is wrong is one line with file, line, word, and what is
# accepted; text of the user's is escaped in the reports; random changes never do worse than a message.
import json, os, random, re, shutil, subprocess, sys, tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'lib'))
from tap import *

need_cetkvm()

scratch = tempfile.TemporaryDirectory()
os.chdir(scratch.name)

def fleet(*args, program=cetkvm):
    r = subprocess.run([program, 'fleet', *args], capture_output=True, timeout=120)
    r.out, r.err = r.stdout.decode('utf-8', 'replace'), r.stderr.decode('utf-8', 'replace')
    return r

def write(text, name='f.fleet'):
    with open(name, 'wb') as f:
        f.write(text if isinstance(text, bytes) else text.encode())

GOOD = 'guest x86-64-v2\nhost a cpu x86-64-v2\nhost b cpu x86-64-v2 kvm strict vmm carries-on forgets events,debugregs\npath a b\n'
MODELS = 'accepted: a model (sapphirerapids, skylake, x86-64-v3, x86-64-v2, x86-64, host), then ,+FEATURE and ,-FEATURE'

# Text, line, and the rest of the message.
BAD = [
    ('hots a\n', 1, "'hots' is no statement; accepted: title, about, guest, host, path, expect"),
    ('host a\nhost b cpu nehalem\n', 2, "'nehalem': unknown CPU model 'nehalem'; see 'cetkvm run --cpu list'; " + MODELS),
    ('host a cpu skylake,-avx9\n', 1, "'skylake,-avx9': unknown CPU feature 'avx9'; see 'cetkvm run --cpu list'; " + MODELS),
    ('host a kvm 5.17\n', 1, "'5.17' is no generation of KVM; accepted: over-saving, strict, constrained"),
    ('# one\n\n  host a vmm ignores # here\n', 3, "'ignores' is no policy of a VMM; accepted: stops, carries-on"),
    ('host a vm stops\n', 1, "'vm' is no word of a host; accepted: cpu, kvm, vmm, forgets"),
    ('host a vmm\n', 1, "'vmm' needs a value behind it; accepted: stops, carries-on"),
    ('host a cpu\n', 1, "'cpu' needs a value behind it; accepted: a CPU model"),
    ('host a kvm\n', 1, "'kvm' needs a value behind it; accepted: over-saving, strict, constrained"),
    ('host a forgets\n', 1, "'forgets' needs a value behind it; accepted: xsave, xcrs, msrs, ssp, events, mp-state, debugregs"),
    ('host a forgets ssp,sregs\n', 1, "'sregs' is no piece of state that a VMM can forget; accepted: xsave, xcrs, msrs, ssp, events, mp-state, debugregs"),
    ('host a kvm strict kvm strict\n', 1, "'kvm' is said twice; accepted: once a host"),
    ('host\n', 1, "'host' needs a name; accepted: host NAME [cpu CPU] [kvm GENERATION] [vmm POLICY] [forgets PIECES]"),
    ('host a/b\n', 1, "'a/b' is no name for a host; accepted: up to 24 letters, digits, '.', '_' and '-'"),
    ('host a\nhost a\n', 2, "there is a host 'a' already, in line 1; accepted: another name"),
    (''.join('host h%d\n' % i for i in range(17)), 17, "'h16' is one host too many; accepted: up to 16"),
    ('host a\npath a\n', 2, "'path' needs two hosts at least; accepted: path HOST HOST..."),
    ('host a\nhost b\npath a c\n', 3, "'c' is no host described above; accepted: a, b"),
    ('path a b\n', 1, "'a' is no host described above; accepted: none, for no host is described above"),
    ('host a\npath a a\npath a a\n', 3, "'path' is said twice; accepted: once"),
    ('host a\npath' + ' a' * 17 + '\n', 2, "'a' makes the path too long; accepted: up to 16 hosts"),
    ('host a\n', None, "there is no 'path'; accepted: path HOST HOST..."),
    ('', None, "there is no 'path'; accepted: path HOST HOST..."),
    ('expect fine\n', 1, "'fine' is no outcome; accepted: intact, refused, corrupted, crashed"),
    ('expect intact\nexpect intact\n', 2, "'expect' is said twice; accepted: once"),
    ('guest\n', 1, "'guest' takes one word; accepted: guest CPU, as in 'guest sapphirerapids,-pku'"),
    ('guest skylake\nguest skylake\n', 2, "'guest' is said twice; accepted: once"),
    ('title a\ntitle b\n', 2, "'title' is said twice; accepted: once"),
    ('title ' + 'x' * 394 + '\n', 1, 'the line has 400 characters; accepted: up to 399'),
    (b'title a\x00b\n', 1, 'the line is not text; accepted: UTF-8 without control characters'),
    (b'title \x1b[31m\n', 1, 'the line is not text; accepted: UTF-8 without control characters'),
    (b'title \xff\n', 1, 'the line is not text; accepted: UTF-8 without control characters'),
    (b'title \xc0\xaf\n', 1, 'the line is not text; accepted: UTF-8 without control characters'),
    (b'title \xed\xa0\x80\n', 1, 'the line is not text; accepted: UTF-8 without control characters'),
    ('host a cpu x86-64-v2,+avx512f,-avx2\n', 1, "'x86-64-v2,+avx512f,-avx2': +avx512f needs avx2, which is taken away; " + MODELS),
    ('host a cpu x86-64-v2,+pks\npath a a\n', 1, "'+pks': this machine cannot have it; accepted: what 'cetkvm run --cpu list' shows without parentheses"),
    ('guest x86-64-v2,+shstk,+xsaves,+xsavec,+xsave\nhost a cpu x86-64-v2\npath a a\n', 1,
     None),
]
BAD += [
    ('guest x86-64,-lm\nhost a\npath a a\n', 1, "'x86-64,-lm': the guest cannot start on it (exception); accepted: a processor with all that x86-64 has"),
    ('host a cpu host,\n', 1, "'host,': '' is neither +feature nor -feature; see 'cetkvm run --cpu list'; " + MODELS),
    ('host a forgets ,\n', 1, "'' is no piece of state that a VMM can forget; accepted: xsave, xcrs, msrs, ssp, events, mp-state, debugregs"),
]
for text, line, message in BAD:
    write(text)
    r = fleet('f.fleet')
    ok(not r.out, 'nothing on standard output: %r' % (text[:50],), r.out)
    wanted = 'cetkvm: f.fleet:%s %s\n' % ('%d:' % line if line else '', message)
    if message is None:
        good = r.returncode == 2 and re.fullmatch(r"cetkvm: f\.fleet:1: '\+\w+': a guest of the first host cannot have it; accepted: .*\n", r.err)
        ok(good, 'refused: a guest with more than its first host', r.err)
        continue
    ok(r.returncode == 2 and r.err == wanted, 'refused: %r' % (text[:50],), 'wanted: %s' % wanted, 'status %d, got: %s' % (r.returncode, r.err))

for args, message in [
    ([], "fleet: no scenario; accepted: a name of 'cetkvm fleet --list', or a file"),
    (['a', 'b'], "fleet: unexpected 'b'; accepted: one scenario"),
    (['nonsense'], "fleet: 'nonsense' is neither a scenario nor a file; accepted: a name of 'cetkvm fleet --list', or a file"),
    (['./nonsense'], './nonsense: No such file or directory; a fleet is described in a text file'),
    (['.'], '.: it is a directory; a fleet is described in a text file'),
    (['--jsn', 'x'], "fleet: unknown option '--jsn'; see 'cetkvm fleet --help'"),
    (['cet-fleet', '--json'], "fleet: option '--json' needs a value; see 'cetkvm fleet --help'"),
    (['cet-fleet', '--html', 'no/such/folder'], '--html no/such/folder: No such file or directory; a file that can be written is needed, or - for standard output'),
    (['cet-fleet', '--json', '.'], '--json .: Is a directory; a file that can be written is needed, or - for standard output'),
    (['cet-fleet', '--html', ''], "--html '': No such file or directory; a file that can be written is needed, or - for standard output"),
    (['cet-fleet', '--json', '-', '--html', '-'], "--json and --html exclude each other in '-'; accepted are two files, or - for one of them"),
    (['-xy', 'cet-fleet'], "fleet: unknown option '-x'; see 'cetkvm fleet --help'"),
    (['--quiet=1', 'cet-fleet'], "fleet: option '--quiet' takes no value; see 'cetkvm fleet --help'"),
    (['--list', 'cet-fleet'], 'fleet: --list stands alone; the scenario, --json, --html and --quiet do not go with it'),
    (['two\nlines'], "fleet: 'two?lines' is neither a scenario nor a file; accepted: a name of 'cetkvm fleet --list', or a file"),
]:
    r = fleet(*args)
    ok(r.returncode == 2 and r.err == 'cetkvm: %s\n' % message, 'refused: fleet %s' % ' '.join(args), r.returncode, r.err)

r = fleet('cet-fleet', '--quiet', '--json', '/dev/full')
equal((r.returncode, r.err), (4, 'cetkvm: fleet: /dev/full: No space left on device\n'), 'a report that cannot be written: status 4')

# What is right.
write(GOOD)
r = fleet('f.fleet', '--json', '-')
report = json.loads(r.out)
equal((r.returncode, report['outcome'], report['scenario']), (0, 'corrupted', 'f'), 'a file; JSON alone on standard output')
equal([h['forgets'] for h in report['hosts']], [[], ['events', 'debugregs']], 'what a VMM forgets')
equal({c['name']: c['fate'] for c in report['steps'][1]['components']}['debug-registers'], 'lost', 'is lost')
equal(report['steps'][1]['refused'], None, 'without an error')
ok('no error was seen' in report['summary'], 'and the summary says so')
fate = {c['name']: c['fate'] for c in report['steps'][1]['components']}
equal((fate['x87'], fate['sse'], fate['avx'], fate['xcr0'], fate['shadow-stack']), ('kept', 'kept', 'unused', 'unused', 'unused'),
      'a guest without XSAVE moves its x87 and SSE registers')
write(GOOD.replace('\n', '\r\n').replace(' ', '\t '))
equal(fleet('f.fleet', '--quiet').returncode, 0, 'tabs and CR LF')
write(GOOD.rstrip('\n'))
equal(fleet('f.fleet', '--quiet').returncode, 0, 'no line break at the end')
write(GOOD + 'expect intact\n')
r = fleet('f.fleet', '--quiet')
equal((r.returncode, r.out, r.err), (1, '', "cetkvm: fleet: f: the outcome is 'corrupted'; expected is 'intact'\n"), 'another outcome than the expected one')
write('host a\nhost b kvm strict\npath ' + 'a b ' * 8 + '\n')
r = fleet('f.fleet', '--json', '-')
equal([s['outcome'] for s in json.loads(r.out)['steps']], ['intact'] * 16, 'sixteen hosts, and all kept')
write('host a cpu host\nhost b cpu host kvm strict\npath a b a\nexpect intact\n')
r = fleet('f.fleet')
equal(r.returncode, 0, 'hosts of this machine\'s own vendor, and all kept')
write('host a\nhost b forgets msrs\npath a b a\n')
s = json.loads(fleet('f.fleet', '--json', '-').out)['steps']
equal([[c['fate'] for c in x['components'] if c['name'] == 'shadow-stack'][0] for x in s], ['set', 'lost', 'gone'],
      'what is lost stays gone on the hosts behind')

# Text of the user's.
nasty = '<script>alert("1")</script> & \'quotes\' "\\" </title> \u00e4\u20ac\U0001f600 \u2028'
write('title %s\nabout %s # not a comment\n' % (nasty, nasty) + GOOD, 'a&b <i>.fleet')
r = fleet('./a&b <i>.fleet', '--json', 'j', '--html', 'h')
report = json.load(open('j', encoding='utf-8'))
equal((report['title'], report['about']), (nasty, nasty + ' # not a comment'), 'JSON has the text as it is')
equal(report['scenario'], 'a&b <i>', 'and the name')
page = open('h', encoding='utf-8').read()
ok('<script' not in page and '<i>' not in page and page.count('&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;quotes&#39;') == 3,
   'the page has it escaped')
equal(page.count('</title>'), 1, 'and one title')

# As installed.
os.makedirs('inst/bin')
os.makedirs('inst/share/cetkvm')
shutil.copy(cetkvm, 'inst/bin/cetkvm')
shutil.copytree(os.path.join(top, 'scenarios'), 'inst/share/cetkvm/scenarios')
equal(fleet('--list', program='inst/bin/cetkvm').out, fleet('--list').out, 'the scenarios are found from bin/')
equal(fleet('mixed-pool', '--quiet', program='inst/bin/cetkvm').returncode, 0, 'and run')
shutil.rmtree('inst/share')
r = fleet('--list', program='inst/bin/cetkvm')
ok(r.returncode == 4 and r.err.startswith('cetkvm: fleet: the folder of the scenarios is neither'), 'without them: a message', r.err)

# Random changes: a message with file and line and status 2, or a description that is one. The last line is
# never one, so that no guest is run.
seed = int(os.environ.get('SEED', random.randrange(1 << 32)))
rng = random.Random(seed)
words = open(os.path.join(top, 'scenarios/trimmed-on-the-way.fleet')).read().split() + [
    'forgets', 'ssp,msrs', '+', '-', ',', '#', '\t', '\r', '\0', '\x7f', '\u00e4', 'x' * 500, 'host,+avx,-avx', 'title', 'about']
sources = [open(os.path.join(top, 'scenarios', n)).read() for n in sorted(os.listdir(os.path.join(top, 'scenarios'))) if n.endswith('.fleet')]
wrong = []
for i in range(400):
    text = bytearray(rng.choice(sources).encode())
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text[at:at + rng.randrange(1, 20)] = b''
        elif kind == 1:
            text[at:at] = rng.choice(words).encode()
        elif kind == 2:
            text[at:at] = bytes([rng.randrange(256)])
        else:
            end = min(len(text), at + rng.randrange(1, 200))
            text[at:at] = text[at:end]
    write(bytes(text) + b'\nend\n')
    r = fleet('f.fleet')
    if r.returncode != 2 or not re.fullmatch(r'cetkvm: f\.fleet:\d+: [^\n]*accepted: [^\n]*\n', r.err):
        wrong.append((i, r.returncode, r.err, bytes(text)))
ok(not wrong, '400 random descriptions (SEED=%d)' % seed, *wrong[:3])

done_testing()
