;; Archives that are none, sent as a file to be added: nothing may come into the store.
(define (nar . items)
  (call-with-values open-bytevector-output-port
    (lambda (port bytes)
      (for-each (cut write-string* <> port) items)
      (bytes))))
(define (send label bytes)
  (attempt/label label
    (with-store store
      (raw-call store 7
                (lambda (port)
                  (write-string* "hostile" port)
                  (write-int 0 port) (write-int 1 port)
                  (write-string* "sha256" port)
                  (put-bytevector port bytes)
                  (force-output port)
                  ;; For what waits for more: there is no more.
                  (shutdown port 1))
                read-string*))))
(define-syntax-rule (try label item ...) (send label (nar item ...)))
(define magic "nix-archive-1")
(try "good file" magic "(" "type" "regular" "contents" "abc" ")")
(try "good directory" magic "(" "type" "directory" "entry" "(" "name" "a" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "magic" "nix-archive-2" "(" "type" "regular" "contents" "abc" ")")
(try "no type" magic "(" ")")
(try "unknown type" magic "(" "type" "fifo" ")")
(try "type twice" magic "(" "type" "regular" "type" "directory" ")")
(try "field before type" magic "(" "contents" "abc" ")")
(try "unknown field" magic "(" "type" "regular" "owner" "root" ")")
(try "dot-dot" magic "(" "type" "directory" "entry" "(" "name" ".." "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "dot" magic "(" "type" "directory" "entry" "(" "name" "." "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "no name" magic "(" "type" "directory" "entry" "(" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "empty name" magic "(" "type" "directory" "entry" "(" "name" "" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "slash" magic "(" "type" "directory" "entry" "(" "name" "a/b" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "nul" magic "(" "type" "directory" "entry" "(" "name" "a\x00;b" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "twice the same name" magic "(" "type" "directory"
     "entry" "(" "name" "a" "node" "(" "type" "regular" "contents" "" ")" ")"
     "entry" "(" "name" "a" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "not sorted" magic "(" "type" "directory"
     "entry" "(" "name" "b" "node" "(" "type" "regular" "contents" "" ")" ")"
     "entry" "(" "name" "a" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "through a link" magic "(" "type" "directory"
     "entry" "(" "name" "a" "node" "(" "type" "symlink" "target" "/tmp" ")" ")"
     "entry" "(" "name" "a" "node" "(" "type" "directory" "entry" "(" "name" "x" "node" "(" "type" "regular" "contents" "" ")" ")" ")" ")" ")")
(try "entry in a file" magic "(" "type" "regular" "entry" "(" "name" "a" "node" "(" "type" "regular" "contents" "" ")" ")" ")")
(try "truncated" magic "(" "type" "regular" "contents" "abc")
(try "empty" )
(send "length of the sky" (u8-list->bytevector (append '(13 0 0 0 0 0 0 0) (bytevector->u8-list (string->utf8 magic)) '(0 0 0 255 255 255 255 255 255 255 127))))
(send "padding" (u8-list->bytevector (append '(13 0 0 0 0 0 0 0) (bytevector->u8-list (string->utf8 magic)) '(1 2 3))))
(with-store store
  (attempt (raw-call store 23 no-argument read-strings)))
