# Many short processes: subshells, pipelines, substitutions, exec, traps and background jobs.
set -eu

numbers=$(for i in $(seq 1 150); do echo "$(( i * i ))"; done | sort -rn | tr '\n' ' ')
echo "substitution ${#numbers} $(echo "$numbers" | cksum)"

total=0
for i in $(seq 1 60); do
    value=$(echo "$i" | sed 's/$/0/' | tr -d '\n')
    total=$(( total + value ))
done
echo "pipelines $total"

(cd / && (cd /tmp && pwd) && pwd)

for i in 1 2 3 4 5 6 7 8; do
    (sleep 0.0$i; exit "$i") &
    jobs_started="${jobs_started:-} $!"
done
for job in $jobs_started; do
    code=0
    wait "$job" || code=$?
    echo "job ended with $code"
done

# A variable of 16 MiB that each subshell inherits.
big=$(head -c 12582912 /dev/zero | tr '\0' 'x')
for i in 1 2 3; do
    (big="${big}y"; echo "${#big}")
done
printf %s "$big" | cksum

trap 'echo "trapped"' USR1
sh -c "kill -USR1 $$"
code=0
{ bash -c 'kill -SEGV $$'; } 2>/dev/null || code=$?
echo "killed: $code"
exec sh -c 'exec env LAST=word sh -c "echo \$LAST; exit 5"'
