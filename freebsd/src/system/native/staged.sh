# shellcheck shell=sh disable=SC2154,SC2034,SC2164 # one script together with common.sh; the derivation gives the rest
# staged.sh : for what is installed to $stage. Another machine does not know the names of its owners, and a part of the system has no list of them.
numbers() {
  awk '
    FNR == 1 { file++ }
    file < 3 { split($0, field, ":"); id[file, field[1]] = field[3]; next }
    {
      for (i = 2; i <= NF; i++) {
        split($i, word, "=")
        if (word[1] == "uname" && (1, word[2]) in id) $i = "uid=" id[1, word[2]]
        if (word[1] == "gname" && (2, word[2]) in id) $i = "gid=" id[2, word[2]]
      }
      print
    }' "$src/etc/master.passwd" "$src/etc/group" "$stage/METALOG" >/tmp/METALOG
  cat /tmp/METALOG >"$stage/METALOG"
}
