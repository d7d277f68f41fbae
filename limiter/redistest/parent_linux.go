package redistest

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel kill the process where the tests end without
// cleaning up: on a panic or a time-out. (It goes by the thread that started the
// process; Go ends none that a goroutine didn't lock for itself.)
func endWithParent(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
