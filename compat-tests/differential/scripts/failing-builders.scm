;; clients: 1.2
;; Every way in which a builder ends badly.
(with-store store
  (options store)
  (for-each
   (match-lambda
     ((name script)
      (attempt/label name (build store (sh store name script #:tools? #t)))))
   '(("exit-1" "echo about to fail; exit 1")
     ("exit-3" "exit 3")
     ("exit-100" "exit 100")
     ("exit-101" "exit 101")
     ("exit-127" "no-such-command")
     ("exit-255" "exit 255")
     ("killed" "kill -KILL $$")
     ("terminated" "kill -TERM $$; $bb sleep 5")
     ("segmentation" "kill -SEGV $$")
     ("aborted" "kill -ABRT $$")
     ("hung-up" "kill -HUP $$; exit 9")
     ("realtime" "kill -40 $$; exit 9")
     ("fails-with-output" "echo partial > $out; exit 2")
     ("fails-with-directory" "$bb/busybox 2>/dev/null; $bb mkdir $out; $bb mkdir $out/d; echo x > $out/d/f; $bb chmod 4777 $out/d/f; exit 2")
     ("no-newline" "printf 'no newline'; exit 1")
     ("silent" "exit 1")))
  (attempt (build store (derivation store "not-executable" (add-text-to-store store "text" "no program") '())))
  (attempt (build store (derivation store "no-builder" (string-append (bash store) "/none") '() #:sources (list (bash store)))))
  (attempt (build store (derivation store "not-an-input" (bash store) '("-c" "echo > $out"))))
  (attempt (build store (derivation store "script" (add-to-store store "script" #t "sha256" (begin (write-file "s" "#!/nowhere/sh\n") (chmod "s" #o755) "s")) '())))
  (attempt (query-failed-paths store)))
