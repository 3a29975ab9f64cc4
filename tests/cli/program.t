#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# `cetkvm run --program`: a host program runs in a guest, with its libraries, arguments, environment,
# input and output, and its exit status comes back.
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
need_kernel
need_command gcc

# Usage: program [OPTION...] -- PROGRAM [ARGUMENT...]; standard input is $input
input=/dev/null
program() {
	local options=()
	while [ "$1" != -- ]; do options+=("$1"); shift; done
	shift
	# shellcheck disable=SC2086
	timeout 120 "$cetkvm" run ${CETKVM_OPTIONS-} --timeout 100 --kernel "$kernel/vmlinuz" "${options[@]}" \
		--program "$@" >"$scratch/out" 2>"$scratch/err" <"$input"
	status=$?
}

cat >"$scratch/program.c" <<'C'
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern int answer(void);

static void *sleeper(void *argument)
{
	pause();
	return argument;
}

int main(int argc, char **argv)
{
	int i;

	if (argc > 1 && !strcmp(argv[1], "kill")) {
		raise(SIGSEGV);
	} else if (argc > 1 && !strcmp(argv[1], "cancel")) {
		pthread_t thread;
		void *result;

		pthread_create(&thread, NULL, sleeper, NULL);
		pthread_cancel(thread);
		pthread_join(thread, &result);
		return result == PTHREAD_CANCELED ? 11 : 1;
	}
	for (i = 0; i < argc; i++)
		printf("argument %d: [%s]\n", i, argv[i]);
	printf("variable: %s\n", getenv("SOME_VARIABLE"));
	fprintf(stderr, "on standard error\n");
	return answer();
}
C
echo 'int answer(void); int answer(void) { return 42; }' >"$scratch/answer.c"
mkdir "$scratch/lib"
gcc -shared -fPIC -o "$scratch/lib/libanswer.so" "$scratch/answer.c" &&
	gcc -pthread -o "$scratch/program" "$scratch/program.c" -L"$scratch/lib" -lanswer -Wl,-rpath,"$scratch/lib" ||
	skip_all "the C compiler does not work"

program --env SOME_VARIABLE="a value" -- "$scratch/program" one "two words" "" --three
is $status 42 "the exit status comes back"
is "$(head -n 6 "$scratch/out")" "argument 0: [$scratch/program]
argument 1: [one]
argument 2: [two words]
argument 3: []
argument 4: [--three]
variable: a value" "arguments and environment arrive; output comes back unchanged"
matches "$scratch/out" '^on standard error$' "standard error comes too"
is "$(wc -c <"$scratch/err")" 0 "nothing else is said"
program -- "$scratch/program" kill
is $status 139 "a signal is 128 and its number"
program -- "$scratch/program" cancel
is $status 11 "what the C library loads by itself is there"

seq 1 3000 >"$scratch/input"
input=$scratch/input program -- sh -c 'sleep 1; md5sum; exit 3'
is "$status $(cut -c 1-32 <"$scratch/out")" "3 $(md5sum <"$scratch/input" | cut -c 1-32)" "input from a file arrives whole"

# shellcheck disable=SC2046
program -- sh -c 'echo $# $1 ${5000} $VARIABLE' sh $(seq 5000)
is "$status $(cat "$scratch/out")" "0 5000 1 5000" "thousands of arguments"

printf '#!/bin/sh\necho "script $1"\nexit 9\n' >"$scratch/script"
chmod +x "$scratch/script"
program --smp 2 -- "$scratch/script" runs
is "$status $(cat "$scratch/out")" "9 script runs" "a script brings its interpreter"

mkdir -p "$scratch/first/script"
PATH=$scratch/first:$scratch:$PATH program -- script again
is "$status $(cat "$scratch/out")" "9 script again" "a program is found in PATH, past a folder of its name"
cd "$scratch" || exit 1
PATH=:$PATH program -- script here
is "$status $(cat "$scratch/out")" "9 script here" "an empty item of PATH is the current folder"
cd "$top" || exit 1

echo "extra" >"$scratch/file"
program --add "$scratch/file:/etc/extra" -- cat /etc/extra
is "$status $(cat "$scratch/out")" "0 extra" "--add puts a file into the guest"
program -- sh -c 'poweroff -f'
is $status 3 "power-off before the program's end is a failure"
matches "$scratch/err" '^cetkvm: the guest powered off before the program had ended' "and is reported"
program -- sh -c 'echo c >/proc/sysrq-trigger'
is $status 3 "a kernel panic is status 3"
matches "$scratch/err" '^cetkvm: guest crashed: Kernel panic - not syncing: sysrq triggered crash' "and is reported"

# What is offered has to fit together: Linux works with what each model says.
for model in host skylake x86-64-v3 x86-64-v2 x86-64; do
	program --cpu $model -- /bin/readlink /proc/self/exe
	is "$status $(cat "$scratch/out")" "0 $(readlink -f /bin/readlink)" "a program runs on $model"
done

echo 'echo "from the shell: $((6 * 7))"; exit 6' >"$scratch/input"
# shellcheck disable=SC2086
timeout 120 "$cetkvm" run ${CETKVM_OPTIONS-} --timeout 100 --kernel "$kernel/vmlinuz" --append "console=ttyS0 quiet" \
	<"$scratch/input" >"$scratch/out" 2>"$scratch/err"
is $? 6 "commands from a pipe run in a shell, whose status comes back"
matches "$scratch/out" '^from the shell: 42' "and say what they say"
done_testing
