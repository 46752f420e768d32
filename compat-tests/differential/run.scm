;; run.scm SCRIPT : run a differential script; used by side.sh through `guix repl'.
(define script (cadr (command-line)))
(load (string-append (getenv "DIFFERENTIAL") "/common.scm"))
(set-port-encoding! (current-output-port) "UTF-8")
(setvbuf (current-output-port) 'line)
(load script)
