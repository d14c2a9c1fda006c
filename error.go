package drover

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an Error is. Each Kind has exactly one API
// code and one exit status; callers decide by Kind and never by text.
type Kind int

// The kinds of failure.
const (
	// Internal is everything that nobody foresaw: a bug or a broken machine.
	Internal Kind = iota
	// Invalid is bad input: a file, a flag, an API body, a frame. Retrying
	// without changing it cannot help.
	Invalid
	// NotFound says that the named thing does not exist.
	NotFound
	// Exists says that the name is taken.
	Exists
	// Refused says that the request is well formed and possible, but that
	// Drover will not do it: preflight, advice, audit, an older generation.
	Refused
	// Unavailable says that a part did not answer; a retry may help.
	Unavailable
	// Canceled says that the caller gave up or an operator canceled.
	Canceled
	// Denied says that the certificate shown does not allow the call.
	Denied
	// Exhausted says that a limit or a resource (disk space, memory) ran out.
	Exhausted
	// Corrupt says that data read back is not what was written.
	Corrupt
	// Unknown says that an action may or may not have taken effect; the real
	// state has to be read before anything else is decided.
	Unknown
)

var kindNames = [...]string{
	"internal", "invalid", "not found", "exists", "refused", "unavailable",
	"canceled", "denied", "exhausted", "corrupt", "unknown outcome",
}

// String returns the kind in lower-case words.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind %d", int(k))
	}
	return kindNames[k]
}

// Retryable reports whether the same call may succeed later unchanged.
func (k Kind) Retryable() bool { return k == Unavailable || k == Unknown }

// ExitStatus returns the shell's exit status for the kind: 1 failed, 2 bad
// usage, 3 refused or not feasible.
func (k Kind) ExitStatus() int {
	switch k {
	case Invalid:
		return 2
	case Refused:
		return 3
	default:
		return 1
	}
}

// Error is the error shape at every border between packages.
type Error struct {
	Kind Kind
	// Op is what was being done, in a few words ("define vm web1").
	Op string
	// Err is the cause; it may be nil when Op says it all.
	Err error
}

// E makes an Error. It returns nil when err is nil, so that it can wrap a
// call's result directly.
func E(kind Kind, op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Op: op, Err: err}
}

// Errorf makes an Error of the given kind whose cause is the formatted text.
func Errorf(kind Kind, op, format string, args ...any) error {
	return &Error{Kind: kind, Op: op, Err: fmt.Errorf(format, args...)}
}

// Error returns "op: cause".
func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.Op
	case e.Op == "":
		return e.Err.Error()
	default:
		return e.Op + ": " + e.Err.Error()
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost Error in err's chain, or Internal
// when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}
