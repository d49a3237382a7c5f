. /tmp/team/env.sh bench
cd /tmp/peer
export QUIET_S=300
quiet bash -c 'date; uptime; timeout 140 bash runcmp.sh --repetitions 1 --cases A1,A4,A8,A16,B16 --json cmpA.json; date; timeout 155 bash runcmp.sh --repetitions 1 --cases C4,C8,C16 --json cmpC.json; date; top -b -n1 | head -12; uptime' > cmp2.log 2>&1
echo finished >> cmp2.log
