#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# What is written about the command is so: each option of --help is in the manual page and the other way
# round, and is taken; what the README shows of a run is what a run shows; what it names is there.
import os, re, shlex, subprocess, sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'lib'))
from tap import *

need_cetkvm()

def run(*args):
    return subprocess.run([cetkvm, *args], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)

def read(name):
    with open(os.path.join(top, name), encoding='utf-8') as f:
        return f.read()

OPTION = re.compile(r'(?<![\w-])--[a-z][a-z-]*')

# The options that a manual page explains: the first word of each tagged paragraph, in its roff.
def options_of_page(name):
    tags = re.findall(r'^\.TP\n(?:\.BR?I? )?(.*)$', read('man/' + name), re.M)
    return {m.group(0) for m in (OPTION.match(re.sub(r'\\f[BIR]', '', t).replace('\\-', '-').lstrip('" ')) for t in tags) if m}

# And those that --help explains: each at the beginning of a line of its own.
def options_of_help(text):
    return {m.group(1) for m in re.finditer(r'^  (--[a-z][a-z-]*)', text, re.M)}

for command in ['run', 'exec', 'fleet']:
    help_text = run(command, '--help').stdout
    helped, explained = options_of_help(help_text), options_of_page('cetkvm-%s.1' % command)
    equal(sorted(explained - helped), [], command + ': --help has each option of the manual page')
    equal(sorted(helped - explained), [], command + ': the manual page has each option of --help')
    ok(len(helped) > 3, command + ': there are some', helped)
    for option in sorted(helped):
        r = run(command, option + '=')
        ok('unknown option' not in r.stderr and r.returncode == 2, '%s: %s is one' % (command, option), r.stderr)
    source = read('src/cli/%s.c' % command)
    taken = {'--' + o for o in re.findall(r'^\t\{ "([a-z-]+)", (?:no|required)_argument', source, re.M)}
    equal(sorted(taken), sorted(helped), command + ': what is taken is what is explained')
    ok(all(len(line) <= 100 for line in help_text.splitlines()), command + ': --help fits a terminal of 100 columns')

overview = run('--help').stdout
commands = re.findall(r'^  ([a-z]+)  +\S', overview.split('commands:')[1].split('try:')[0], re.M)
page = read('man/cetkvm.1').replace('\\-', '-')
equal(sorted(re.findall(r'^\.TP\n\.B ([a-z]+)$', page, re.M)), sorted(commands), 'the manual page has the commands of --help')
for command in commands:
    ok(run('help', command).stdout, 'help %s says something' % command)

# Manual pages name each other, and only such as there are.
pages = os.listdir(os.path.join(top, 'man'))
named = {(n, s) for p in pages for n, s in re.findall(r'(cetkvm[a-z-]*) ?\((\d)\)', read('man/' + p).replace('\\-', '-').replace('"', ''))}
equal(sorted('%s.%s' % ns for ns in named if '%s.%s' % ns not in pages), [], 'manual pages that are named are there')
equal(sorted(p for p in pages if tuple(p.rsplit('.', 1)) not in named), [], 'and each is named')

# The README: its transcript of cetkvm fleet, its commands, its files.
readme = read('README.md')
transcript = re.search(r'```text\n\$ build/cetkvm (fleet .*)\n((?:.*\n)+?)```', readme)
said = run(*shlex.split(transcript.group(1))).stdout.splitlines()
for line in transcript.group(2).splitlines():
    ok(line in said, 'README: cetkvm %s says: %s' % (transcript.group(1), line.strip()[:60]), *said)
for line in re.findall(r'^(?:    |\$ )build/cetkvm (.*)$', readme, re.M):
    words = shlex.split(line)
    ok(words[0] in commands, 'README: cetkvm %s: a command' % words[0])
    given = set()
    for word in words[1:]: # what follows these is somebody else's
        if word == '--':
            break
        given |= {word.split('=')[0]} & set(OPTION.findall(word))
        if word == '--program':
            break
    wanted = options_of_help(run(words[0], '--help').stdout)
    equal(sorted(given - wanted), [], 'README: the options of: %s' % line[:60])
for name in sorted(set(re.findall(r'(?<![\w/])(?:man|scripts|docs|tests)/[\w./-]*\w', readme + read('CONTRIBUTING.md')))):
    ok(os.path.exists(os.path.join(top, name)), 'README, CONTRIBUTING: %s is there' % name)
for target in sorted(set(re.findall(r'make ([a-z][a-z-]+)', readme + read('CONTRIBUTING.md')))):
    ok(re.search(r'^\.PHONY:.*\b%s\b' % target, read('Makefile'), re.M), 'README, CONTRIBUTING: make %s' % target)

# The table of KVM selftests counts what is in it.
table = read('docs/kvm-selftests.md')
results = re.findall(r'^\| \S+ \| .* \| (pass|skip|fail) \| ', table, re.M)
total = re.search(r'^(\d+) of (\d+) pass', table, re.M)
equal((int(total.group(1)), int(total.group(2))), (results.count('pass'), len(results)), 'docs/kvm-selftests.md: the total')

done_testing()
