;; FreeBSD systems in Scheme: what `fruix system' reads from TOML, for people who have Guix.
;;
;;   (use-modules (fruix system freebsd))
;;   (freebsd-image
;;    (operating-system
;;     (host-name "minimal")
;;     (base (freebsd-base (version "15.1-RELEASE") (kind "local-tree") (path "/usr/freebsd")))
;;     (file-systems (list (file-system (mount-point "/") (device "/dev/gpt/rootfs") (type "ufs"))))))
;;
;; `guix build -L guile -f FILE' builds it. The fields are those of docs/systems.md; local files are relative to the current directory.
;; The derivations are plain ones with builders of the daemon, and the same as those that `fruix system' makes of TOML.

(define-module (fruix system freebsd)
  #:use-module (guix store)
  #:use-module (guix derivations)
  #:use-module (guix base16)
  #:use-module (guix gexp)
  #:use-module (fruix system freebsd table)
  #:use-module (ice-9 match)
  #:use-module (srfi srfi-1)
  #:use-module (srfi srfi-9)
  #:export (freebsd-packages
            freebsd-closure
            freebsd-rootfs
            freebsd-image
            freebsd-artifact-derivation
            canonical-text))

;; A part: its name, and all its fields in the order of the table.
(define-record-type <part>
  (%make-part name fields)
  part?
  (name part-name)
  (fields part-fields))

(define (complain part field message)
  (error (format #f "~a: ~a: ~a" part field message)))

(define (field-value part field)
  (assq-ref (part-fields part) field))

(define (string-pairs? value)
  (and (list? value)
       (every (match-lambda (((? string?) . (? string?)) #t) (_ #f)) value)))

(define (check-value name field shape default check value)
  (define (of-part? inner)
    (lambda (value) (and (part? value) (eq? (part-name value) inner))))
  (unless (or (and (not value) (equal? default '(is #f)))
              (match shape
                ('text (string? value))
                ('flag (boolean? value))
                ('number (and (exact-integer? value) (>= value 0)))
                ('texts (and (list? value) (every string? value)))
                ('pairs (string-pairs? value))
                (('part inner) ((of-part? inner) value))
                (('parts inner) (and (list? value) (every (of-part? inner) value)))))
    (complain name field (format #f "~s is no ~a" value shape)))
  (match check
    (('one-of words ...)
     (for-each (lambda (word)
                 (unless (member word words)
                   (complain name field (format #f "~s is not one of ~a" word words))))
               (cond ((string? value) (list value))
                     ((list? value) value)
                     (else '()))))
    (('range low high)
     (unless (or (not value) (<= low value high))
       (complain name field (format #f "~a is not from ~a to ~a" value low high))))
    (#f #t))
  (if (eq? shape 'pairs)
      (sort value (lambda (one other) (string<? (car one) (car other))))
      value))

(define (make-part name given)
  (define rows (assq-ref %parts name))
  (for-each (match-lambda
              ((field . _)
               (unless (assq field rows)
                 (complain name field "no such field"))))
            given)
  (%make-part
   name
   (map (match-lambda
          ((field shape default check)
           (cons field
                 (match (assq field given)
                   ((_ . value) (check-value name field shape default check value))
                   (#f (match default
                         ('required (complain name field "is missing"))
                         ('part (make-part (second shape) '()))
                         (('is value) value)))))))
        rows)))

(define-syntax define-parts
  (syntax-rules ()
    ((_ part ...)
     (begin
       (begin
         (define-syntax part
           (syntax-rules ()
             ((_ (field value) (... ...))
              (make-part 'part (list (cons 'field value) (... ...))))))
         (export part))
       ...))))

(define-parts
  operating-system freebsd-base freebsd-set freebsd-source pkg-repository user group file-system file
  services sshd-service dhcp-service ntpd-service syslogd-service cron-service
  jail shepherd-service fruixd-service image)

;; A part like another one, but for some fields.
(define (with part . changes)
  (%make-part (part-name part)
              (map (match-lambda
                     ((field . value)
                      (cons field (match (memq field changes)
                                    ((_ value . _) value)
                                    (#f value)))))
                   (part-fields part))))


;;; The canonical text, as freebsd/src/system/canon.rs has it.

(define (write-string-literal text port)
  (display #\" port)
  (string-for-each (match-lambda
                     (#\" (display "\\\"" port))
                     (#\\ (display "\\\\" port))
                     (#\newline (display "\\n" port))
                     (#\tab (display "\\t" port))
                     (char (display char port)))
                   text)
  (display #\" port))

(define (write-items items write-item port)
  (display #\( port)
  (fold (lambda (item first?)
          (unless first? (display #\space port))
          (write-item item port)
          #f)
        #t items)
  (display #\) port))

(define (write-field field port)
  (match field
    ((name . value)
     (display #\( port)
     (display name port)
     (display #\space port)
     (write-value value port)
     (display #\) port))))

(define (write-value value port)
  (match value
    (#t (display "#t" port))
    (#f (display "#f" port))
    ((? number?) (display value port))
    ((? string?) (write-string-literal value port))
    ((? part?) (write-items (part-fields value) write-field port))
    (_ (write-items value write-value-in-list port))))

(define (write-value-in-list value port)
  (match value
    (((? string? name) . (? string? text))
     (display #\( port)
     (write-string-literal name port)
     (display " . " port)
     (write-string-literal text port)
     (display #\) port))
    (_ (write-value value port))))

(define (canonical-text part)
  "Return the text in which builders get PART."
  (call-with-output-string
    (lambda (port)
      (display #\( port)
      (display (part-name part) port)
      (for-each (lambda (field)
                  (display "\n " port)
                  (write-field field port))
                (part-fields part))
      (display ")\n" port))))


;;; Derivations, as freebsd/src/system/derivations.rs has them.

(define %platform "x86_64-freebsd")

;; The variable with the version of BUILDER.
(define (builder-version builder)
  `((,%builder-version . ,(assoc-ref %builders builder))))

(define (add-text store name text references)
  (add-text-to-store store name text references))

(define (add-local store name path recursive?)
  ;; A link's own archive is that of a link.
  (add-to-store store name recursive? "sha256" (canonicalize-path path)))

(define (file-name-of url)
  (last (string-split url #\/)))

;; The store path of a set, and the derivation that downloads it, if any.
(define (set-source store set platform)
  (match (list (field-value set 'url) (field-value set 'path))
    (((? string? url) #f)
     (let ((drv (derivation store (file-name-of url) "builtin:download" '()
                            #:system platform
                            #:env-vars `(("url" . ,(object->string url)))
                            #:hash-algo 'sha256
                            #:hash (base16-string->bytevector (field-value set 'sha256)))))
       (values (derivation->output-path drv) drv)))
    ((#f (? string? path))
     (values (add-local store (basename path) path #f) #f))
    (_ (complain 'freebsd-set 'url "give either url or path"))))

(define (base-derivation store system platform)
  (define base (field-value system 'base))
  (define cut
    (add-text store "freebsd-cut.scm"
              (canonical-text
               (make-part 'freebsd-cut
                          `((version . ,(field-value base 'version))
                            (manifest . ,(field-value base 'manifest))
                            (packages . ,(map (match-lambda
                                                ((name patterns ...)
                                                 (make-part 'package `((name . ,name) (patterns . ,patterns)))))
                                              %packages)))))
              '()))
  (define name
    (string-append (field-value base 'name) "-" (field-value base 'version)))
  (define (build sources inputs env)
    (derivation store name "builtin:freebsd-base" '()
                #:system platform
                #:outputs (map first %packages)
                #:sources (cons cut sources)
                #:inputs (map derivation-input inputs)
                #:env-vars `(("cut" . ,cut) ,@env ,@(builder-version "builtin:freebsd-base"))))
  (match (field-value base 'kind)
    ("local-tree"
     (let ((tree (add-local store "freebsd-tree"
                            (or (field-value base 'path) (complain 'freebsd-base 'path "is missing"))
                            #t)))
       (build (list tree) '() `(("tree" . ,tree)))))
    ("freebsd-sets"
     (let* ((sets (map (lambda (set)
                         (call-with-values (lambda () (set-source store set platform)) cons))
                       (field-value base 'sets)))
            (paths (map car sets)))
       (build (filter-map (match-lambda ((path . #f) path) (_ #f)) sets)
              (filter-map cdr sets)
              `(("sets" . ,(string-join paths " "))))))
    ;; What these are made of is pinned in a file, which `fruix pkg update' or `fruix source update' writes.
    ((and kind (or "pkgbase" "source")) (complain 'freebsd-base 'kind (string-append kind " is for system files in TOML")))))

;; The system with store paths for local files, and those paths.
(define (essential store system)
  (define services (field-value system 'services))
  (define shepherd (field-value services 'shepherd))
  (define fruixd (field-value services 'fruixd))
  (define shepherd-path
    (and shepherd (add-local store "shepherd" (field-value shepherd 'path) #t)))
  (define program
    (and fruixd (add-local store "fruixd" (field-value fruixd 'program) #t)))
  (define client
    (and fruixd (field-value fruixd 'client)
         (add-local store "fruix" (field-value fruixd 'client) #t)))
  (define base (field-value system 'base))
  (values
   (with system
         'base (with base
                     'path #f
                     'sets (map (lambda (set) (with set 'url #f 'path #f)) (field-value base 'sets)))
         'services (with services
                         'shepherd (and shepherd (with shepherd 'path shepherd-path))
                         'fruixd (and fruixd (with fruixd 'program program 'client client)))
         'image (make-part 'image `((grow . ,(field-value (field-value system 'image) 'grow)))))
   (filter identity (list shepherd-path program client))))

(define (system-derivations store system platform)
  "Return the derivations of SYSTEM: of its base, closure, root file system and image."
  (when (field-value system 'repository)
    (complain 'operating-system 'repository "is for system files in TOML"))
  (define base (base-derivation store system platform))
  (define wanted
    (cons* (field-value system 'kernel) (field-value system 'bootloader) (field-value system 'base-packages)))
  (define names
    (sort (filter (lambda (name) (member name wanted)) (map first %packages)) string<?))
  (define-values (description local)
    (call-with-values (lambda () (essential store system))
      (lambda (system local)
        (values (add-text store "freebsd-system.scm" (canonical-text system) local) local))))
  (define common
    `(("configuration" . ,description)
      ("packages" . ,(string-join (map (lambda (name)
                                         (string-append name "=" (derivation->output-path base name)))
                                       names)
                                  " "))))
  (define (named what)
    (string-append "fruix-" what "-" (field-value system 'host-name)))
  (define closure
    (derivation store (named "system") "builtin:freebsd-system" '()
                #:system platform
                #:inputs (list (derivation-input base names))
                #:sources (cons description local)
                #:env-vars `(,@common ,@(builder-version "builtin:freebsd-system"))))
  (define closure-path (derivation->output-path closure))
  (define rootfs
    (derivation store (named "rootfs") "builtin:freebsd-rootfs" '()
                #:system platform
                #:inputs (list (derivation-input base names) (derivation-input closure))
                #:sources (cons description local)
                #:env-vars `(,@common
                             ("closure" . ,closure-path)
                             ("exportReferencesGraph" . ,(string-append "graph " closure-path))
                             ,@(builder-version "builtin:freebsd-rootfs"))))
  (define image-part (field-value system 'image))
  (define settings
    (add-text store "freebsd-image.scm" (canonical-text image-part) '()))
  (define image
    (derivation store (string-append (named "image") "." (field-value image-part 'format))
                "builtin:freebsd-image" '()
                #:system platform
                #:inputs (list (derivation-input rootfs))
                #:sources (list settings)
                #:env-vars `(("configuration" . ,settings)
                             ("rootfs" . ,(derivation->output-path rootfs))
                             ,@(builder-version "builtin:freebsd-image"))))
  `((packages . ,base) (closure . ,closure) (rootfs . ,rootfs) (image . ,image)))


;;; What `guix build -f' understands.

(define-record-type <freebsd-artifact>
  (make-freebsd-artifact kind system)
  freebsd-artifact?
  (kind freebsd-artifact-kind)
  (system freebsd-artifact-system))

(define (freebsd-packages system) (make-freebsd-artifact 'packages system))
(define (freebsd-closure system) (make-freebsd-artifact 'closure system))
(define (freebsd-rootfs system) (make-freebsd-artifact 'rootfs system))
(define (freebsd-image system) (make-freebsd-artifact 'image system))

(define* (freebsd-artifact-derivation store artifact #:optional (platform %platform))
  "Return the derivation of ARTIFACT."
  (assq-ref (system-derivations store (freebsd-artifact-system artifact) platform)
            (freebsd-artifact-kind artifact)))

(define-gexp-compiler (freebsd-artifact-compiler (artifact <freebsd-artifact>) system target)
  (lambda (store)
    (values (freebsd-artifact-derivation store artifact) store)))
