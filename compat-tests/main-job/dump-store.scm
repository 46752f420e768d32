;; dump-store.scm : print what the store's database says of every valid path, one line each, sorted:
;; PATH, hash, size, deriver, references.  Read from the database itself, as both daemons leave it; run by `guix repl'.

(use-modules (sqlite3)
             (ice-9 match)
             (ice-9 format)
             ((guix config) #:select (%store-database-directory)))

(define db
  (sqlite-open (string-append %store-database-directory "/db.sqlite")))

(define (rows query . arguments)
  (let ((statement (sqlite-prepare db query)))
    (apply sqlite-bind-arguments statement arguments)
    (let ((result (sqlite-fold-right cons '() statement)))
      (sqlite-finalize statement)
      result)))

(for-each
 (match-lambda
   (#(id path hash size deriver)
    (format #t "~a ~a ~a deriver=~a references=~{~a~^,~}~%"
            path hash size (or deriver "-")
            (map (match-lambda (#(reference) (basename reference)))
                 (rows "SELECT path FROM ValidPaths JOIN Refs ON reference = id
WHERE referrer = ? ORDER BY path" id)))))
 (rows "SELECT id, path, hash, narSize, deriver FROM ValidPaths ORDER BY path"))
