# SPDX-License-Identifier: MIT
"""Breaks one rule after another in a copy of the source and sees that tests notice."""
import os, re, shutil, subprocess, sys, tempfile

top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

def main(mutations, targets, failures):
    """mutations: (rule, file, what stands there, what shall stand there). targets: what to build.
    failures(tree, build): names of the checks that fail. Returns the exit status."""
    if '--list' in sys.argv:
        for n, m in enumerate(mutations, 1):
            print(n, m[0])
        return 0
    only = None
    if '--only' in sys.argv:
        only = {int(n) for n in sys.argv[sys.argv.index('--only') + 1].split(',')}
    unseen = 0
    with tempfile.TemporaryDirectory() as work:
        tree, build = os.path.join(work, 'tree'), os.path.join(work, 'build')
        shutil.copytree(top, tree, ignore=shutil.ignore_patterns('build*', '.git', '.cache'))
        subprocess.run(['meson', 'setup', build, tree], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(['ninja', '-C', build] + targets, check=True, stdout=subprocess.DEVNULL)
        before = failures(tree, build)
        if before:
            print('checks fail without any mutation: %s' % before[0])
            return 1
        for n, (rule, name, old, new) in enumerate(mutations, 1):
            if only and n not in only:
                continue
            path = os.path.join(tree, name)
            source = open(path).read()
            if source.count(old) != 1:
                print('%2d STALE   %s: its text stands %d times in %s' % (n, rule, source.count(old), name))
                unseen += 1
                continue
            open(path, 'w').write(source.replace(old, new))
            built = subprocess.run(['ninja', '-C', build] + targets, stdout=subprocess.PIPE, text=True)
            found = failures(tree, build) if built.returncode == 0 else []
            open(path, 'w').write(source)
            if built.returncode:
                print('%2d STALE   %s: does not compile: %s' % (n, rule, re.findall(r'error: .*', built.stdout)[:1]))
                unseen += 1
            elif found:
                print('%2d noticed %s: %d checks fail, first: %s' % (n, rule, len(found), found[0]), flush=True)
            else:
                print('%2d UNSEEN  %s' % (n, rule), flush=True)
                unseen += 1
    return unseen != 0
