# What random sequences make differ on purpose, beyond differential/normalise.sed; docs/differences.md says why.
# guix-daemon prints the place where the path should be.
s/path `(%1%|\/[^']*)' is not valid/path `PATH' is not valid/
# Errors about archives say where.
s/^(  error .*NAR.*) at byte [0-9]+$/\1/
# What is not UTF-8 in a name, guix-daemon says as it is.
s/(invalid character `).*(' in name `).*'/\1...\2...'/
# Errors about derivations say where.
s/^(  error .*error parsing derivation .*) at byte [0-9]+$/\1/
# Left by a refused deletion of guix-daemon's, with one link more to a file that is added again.
/^disk store\/trash[ \/]/d
s/^(disk store\/[^ ]*busybox f .*) links=[0-9]+/\1/
# Of fruixd's own.
/^db schema (table|index) (Fruix|sqlite_autoindex_Fruix)/d
# Which of the dependents still say so before a request ends is not fixed.
/^  \| cannot build derivation `.*': [0-9]+ dependencies couldn't be built$/d
# What is wrong with an archive is said in other words.
s/^(  error .*: bad archive): .*$/\1/
# Which call on a file failed, and the number of the error.
s/^(  (error|\|) .*)(reading|opening|getting status of|getting attributes of path|reading symbolic link|opening directory)( file| symbolic link| path)? `/\1accessing `/
s/ \(os error [0-9]+\)//
# guix-daemon says at which step of making the sandbox.
s/(while setting up the child process: )in phase [A-Za-z]+: /\1/
# guix-daemon says which outputs it looks at before it repairs.
/^  \| checking path `/d
# Made for the first build: before or after what else it needs is looked at.
/^disk var\/userpool/d
# Builtin builders for systems, which guix-daemon has not (docs/differences.md).
s/ freebsd-[a-z]*//g
# What `ls' prints of a sandbox's directories: made in one minute or in the next.
s/^(  \| |log \| )([-dl][-rwxst]{9} .* )[A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2} \//\1\2TIME \//
# A link to nothing: guix-daemon has the system refuse it.
s/^(  error .*: )creating symlink from `[^']*' to `': No such file or directory$/\1bad archive/
# A builder that is no program: guix-daemon's C library tries it as a script of /bin/sh, which is not there.
s/(executing `[^']*': )(No such file or directory|Exec format error)$/\1not a program/
