# Everything that may differ between two daemons and is not a difference; applied to what client and dump print.
# Process ids, in traces and in the names of temporary roots.
s/(@ build-started [^ ]+ - [^ ]* [^ ]*) [0-9]+/\1 PID/
s/(@ build-log) [0-9]+ /\1 PID /
s|(var/temproots/)[0-9]+ |\1PID |
s|/proc/[0-9]+/|/proc/PID/|g
# Times that the client or its build prints.
s/after [0-9.]+ seconds/after N seconds/
# Where fruixd keeps what is not yet in the store: a directory that only it can enter, empty between operations (docs/differences.md).
/^disk store\/[^ ]*-fruixd-staging /d
# SQLite's own files beside the database are there or not as the last process happened to close it.
/^disk var\/db\/db\.sqlite-(wal|shm) /d
# Nix's columns, which guix-daemon does not read, and a comment in its schema.
s/, ultimate integer, sigs text, ca text\)/)/
s/ -- symbolic output id, usually "out"//
# The table of additions that are not synced yet (docs/design/store.md), which guix-daemon does not mind.
/^db schema (table|index) (Fruix|sqlite_autoindex_Fruix)/d
# guix-daemon needs another program to give fixed outputs a network, and says so; fruixd does it itself.
/slirp4netns' can't be found in PATH, network access disabled$/d
# A collection that guix-daemon runs takes its own session's roots for those of a dead process.
/removing stale temporary roots file `/d
# guix-daemon prints the place where the number should be.
s/timed out after (%2%|[0-9]+) seconds/timed out after N seconds/
# Made when it is first used, or at start.
/^disk var\/gc\.lock /d
