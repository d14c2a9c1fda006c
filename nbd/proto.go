package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// Numbers of the wire, named as in the protocol's text.
const (
	magicServer   = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption   = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply = 0x0003e889045565a9

	magicRequest    = 0x25609513
	magicExtRequest = 0x21e41c71
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
	magicExtReply   = 0x6e8a278c

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optSetMetaContext  = 10
	optExtendedHeaders = 11

	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrBit      = 1 << 31
	repErrUnsup    = repErrBit + 1
	repErrPolicy   = repErrBit + 2
	repErrInvalid  = repErrBit + 3
	repErrUnknown  = repErrBit + 6
	repErrTooBig   = repErrBit + 9

	infoExport    = 0
	infoName      = 1
	infoBlockSize = 3

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagFUA        = 1 << 0
	cmdFlagNoHole     = 1 << 1
	cmdFlagDF         = 1 << 2
	cmdFlagFastZero   = 1 << 4
	cmdFlagPayloadLen = 1 << 5

	replyFlagDone       = 1 << 0
	replyNone           = 0
	replyOffsetData     = 1
	replyOffsetHole     = 2
	replyBlockStatus    = 5
	replyBlockStatusExt = 6
	replyErrorBit       = 1 << 15
	replyError          = replyErrorBit + 1
	replyErrorOffset    = replyErrorBit + 2
)

// Transmission flags of an export.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
	flagSendCache       = 1 << 10
	flagSendFastZero    = 1 << 11
)

// Limits on what a server may say, each above what a sound one does.
const (
	// maxOptionReply bounds one option reply; the protocol bounds strings at
	// 4096 bytes and no reply carries more than a few.
	maxOptionReply = 64 << 10
	// maxOptions bounds the options of one client; QEMU sends up to 5.
	maxOptions = 64
	// maxName bounds an export's name, the protocol's string limit.
	maxName = 4096
	// maxOptionReplies bounds the replies to one option; the longest sound
	// answer has one per context or information and the ACK.
	maxOptionReplies = 256
	// maxErrorText bounds the text of an error, the protocol's string limit.
	maxErrorText = 4096
	// maxExtents bounds the extents of one BLOCK_STATUS chunk: QEMU sends at
	// most 1 MiB / 8 of them (nbd/server.c, NBD_MAX_BLOCK_STATUS_EXTENTS).
	maxExtents = 1 << 17
	// maxExportSize is the largest size that offsets in int64 can address.
	maxExportSize = 1<<63 - 1
	// defaultMaxBlock is what the protocol allows a client to send when the
	// server does not announce a limit.
	defaultMaxBlock = 32 << 20
)

// ErrProtocol is in the chain of every error that says the server broke the
// protocol. The connection is unusable afterwards.
var ErrProtocol = errors.New("nbd: protocol violation")

// ErrClosed is returned by requests on a closed client.
var ErrClosed = errors.New("nbd: client is closed")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// ServerError is a request's or an option's failure as the server reports it.
// It unwraps to the errno the wire carries, so that errors.Is(err,
// syscall.ENOSPC) works.
type ServerError struct {
	// Op is the command or option that failed.
	Op string
	// Errno is zero for options, whose errors have numbers of their own.
	Errno syscall.Errno
	// Text is the server's message, possibly empty.
	Text string
}

// Error returns the operation, the errno's text and the server's message.
func (e *ServerError) Error() string {
	s := "nbd " + e.Op
	if e.Errno != 0 {
		s += ": " + e.Errno.Error()
	}
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// Unwrap returns the errno, or nil.
func (e *ServerError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// wireErrno maps the protocol's error values, which are Linux's, and treats
// any other as EINVAL, as the protocol demands.
func wireErrno(v uint32) syscall.Errno {
	switch e := syscall.Errno(v); e {
	case syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC,
		syscall.EOVERFLOW, syscall.ENOTSUP, syscall.ESHUTDOWN:
		return e
	default:
		return syscall.EINVAL
	}
}

func commandName(cmd uint16) string {
	switch cmd {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdFlush:
		return "flush"
	case cmdWriteZeroes:
		return "write zeroes"
	case cmdTrim:
		return "trim"
	case cmdCache:
		return "cache"
	case cmdBlockStatus:
		return "block status"
	default:
		return fmt.Sprintf("command %d", cmd)
	}
}
