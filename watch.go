package main

import (
	"context"
	"crypto/sha256"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

const (
	// settleTime is how long a burst of changes may last before it is looked at.
	settleTime = 100 * time.Millisecond
	// recheckTime is how often files are looked at though nothing was heard of
	// them: of some file systems, as NFS, nothing ever is.
	recheckTime = time.Minute
	// maxLinks bounds the symbolic links on the way to a file, as the kernel does.
	maxLinks = 40
)

// fileWatch says when what some files hold has become another: rewritten in
// place, replaced by a rename, or reached through a symbolic link that was
// changed anywhere on the way to them, as Kubernetes does with a secret's
// directory. Files may be missing for a while. It compares contents, so that
// neither a touch nor a change elsewhere in the directory counts.
type fileWatch struct {
	paths  []string
	log    zerolog.Logger
	every  time.Duration     // recheckTime; less in tests
	seen   fileSums          // as of the last look
	turned bool              // to other paths, since the last look
	bell   *fsnotify.Watcher // nil where the system has none to give
}

// fileSums are digests of what files held when they were read, by path; zero for one
// that couldn't be.
type fileSums map[string][sha256.Size]byte

// read adds the digest of a file.
func (s fileSums) read(path string) {
	var sum [sha256.Size]byte
	if data, err := limiter.ReadSmallFile(path); err == nil {
		sum = sha256.Sum256(data)
	}
	s[path] = sum
}

// newFileWatch takes a first look. Who reads the files after that, and then
// lets run tell of changes, misses none.
func newFileWatch(paths []string, log zerolog.Logger) *fileWatch {
	w := &fileWatch{paths: paths, log: log, every: recheckTime, seen: fileSums{}}
	w.look()
	return w
}

// turnTo watches one file and those of others from now on. What others says is what was
// last read of them: a change since is told. It may be called before run, and by
// the function that run calls.
func (w *fileWatch) turnTo(file string, others fileSums) {
	paths := append([]string{file}, slices.Sorted(maps.Keys(others))...)
	if slices.Equal(paths, w.paths) {
		return
	}
	seen := fileSums{}
	maps.Copy(seen, others)
	for _, path := range paths {
		if sum, ok := w.seen[path]; ok {
			seen[path] = sum
		}
	}
	w.paths, w.seen, w.turned = paths, seen, true
}

// run calls changed, never twice at a time, after each change, until ctx ends.
func (w *fileWatch) run(ctx context.Context, changed func()) {
	bell, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn().Err(err).Dur("every_ms", w.every).Msg("files can't be watched, they are read again and again instead; raise fs.inotify.max_user_instances")
		bell = &fsnotify.Watcher{} // its channels are nil: nothing is ever heard
	} else {
		w.bell = bell
		defer bell.Close()
	}
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		w.follow()
		if w.look() {
			changed()
		}
		awaits := wait
		if w.turned { // nobody listened for changes of the new ones yet
			w.turned, awaits = false, settle
		}
		if !awaits(ctx, bell, tick.C) {
			return
		}
	}
}

// wait returns when something may have changed and has settled; false once ctx
// has ended.
func wait(ctx context.Context, bell *fsnotify.Watcher, tick <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-tick:
		return true
	case <-bell.Events:
	case <-bell.Errors: // an overflow: anything may have happened
	}
	return settle(ctx, bell, tick)
}

// settle returns when a burst of changes is over; false once ctx has ended.
func settle(ctx context.Context, bell *fsnotify.Watcher, _ <-chan time.Time) bool {
	settled := time.NewTimer(settleTime)
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-settled.C:
			return true
		case <-bell.Events:
		case <-bell.Errors:
		}
	}
}

// look reads the files and says whether any of them has changed.
func (w *fileWatch) look() (changed bool) {
	now := fileSums{}
	for _, path := range w.paths {
		now.read(path)
	}
	changed = !maps.Equal(now, w.seen)
	w.seen = now
	return changed
}

// follow watches the directories that matter now, and no others.
func (w *fileWatch) follow() {
	if w.bell == nil {
		return
	}
	var wanted []string
	for _, path := range w.paths {
		wanted = append(wanted, directoriesOf(path)...)
	}
	for _, old := range w.bell.WatchList() {
		if !slices.Contains(wanted, old) {
			_ = w.bell.Remove(old) // it may be gone already
		}
	}
	for _, dir := range wanted {
		// Also one that is watched: another directory may have its name now.
		if err := w.bell.Add(dir); err != nil {
			w.log.Debug().Err(err).Str("directory", dir).Msg("watch; the file is looked at every minute all the same")
		}
	}
}

// directoriesOf are the directories with an entry that decides what path leads
// to: of each symbolic link on the way, and of the file itself. On a way that
// ends early it is the directory where it ends.
func directoriesOf(path string) (dirs []string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	for range maxLinks {
		at, next, done := followOne(path)
		dirs = append(dirs, filepath.Dir(at))
		if done {
			break
		}
		path = next
	}
	return dirs
}

// followOne finds the first part of an absolute path that is a symbolic link,
// or can't be found, and where the path leads with the link resolved.
func followOne(path string) (at, next string, done bool) {
	for end := 1; end < len(path); {
		slash := strings.IndexByte(path[end:], filepath.Separator)
		if slash < 0 {
			slash = len(path) - end
		}
		at, rest := path[:end+slash], path[end+slash:]
		end += slash + 1
		info, err := os.Lstat(at)
		if err != nil {
			return at, "", true
		}
		if info.Mode()&os.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(at)
		if err != nil {
			return at, "", true
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		return at, filepath.Join(target, rest), false
	}
	return path, "", true
}
