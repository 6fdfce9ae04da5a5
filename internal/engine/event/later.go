package event

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// LaterError reports that a message may succeed later, for example because a provider
// was busy. The message is parked and blocks later messages with its key.
type LaterError struct {
	// After is the minimum wait. If 0, the consumer decides.
	After time.Duration
	Err   error
	// Dependency is set if the error is also a failure of a dependency, for which
	// other messages then wait.
	Dependency string
	// Pending is set if the attempt did not fail, but its outcome is not known yet. The
	// attempt does not count, and the wait is exactly After.
	Pending bool
}

func (e *LaterError) Error() string { return e.Err.Error() }

func (e *LaterError) Unwrap() error { return e.Err }

// Later marks err as temporary.
func Later(after time.Duration, err error) error { return &LaterError{After: after, Err: err} }

// Overloaded marks err as temporary, and as a failure of a dependency: either the
// message or the dependency is at fault.
func Overloaded(dependency string, after time.Duration, err error) error {
	return &LaterError{After: after, Err: err, Dependency: dependency}
}

// Pending marks err as a preliminary answer: another system has accepted the request,
// and its outcome will be known later. The message is parked, and this error never
// stops it.
func Pending(after time.Duration, err error) error {
	return &LaterError{After: after, Err: err, Pending: true}
}

// EarlyError reports that a message depends on another one that has not been applied
// yet, such as the creation of its user. The message is parked and blocks later
// messages with its key, until a message with the same key on one of Topics is applied or
// consumer.await_timeout has passed. A handler that can then do without the other
// message checks Meta.Overdue; otherwise the error becomes an ordinary failure.
type EarlyError struct {
	// Topics lists the topics that may carry the other message.
	Topics []string
	Err    error
}

func (e *EarlyError) Error() string {
	return e.Err.Error() + "; awaiting " + strings.Join(e.Topics, " or ")
}

func (e *EarlyError) Unwrap() error { return e.Err }

// Await marks err as caused by a missing message on one of topics.
func Await(err error, topics ...string) error { return &EarlyError{Topics: topics, Err: err} }

// maxRetryAfter caps the delay that another system may ask for.
const maxRetryAfter = time.Hour

// RetryAfter parses a Retry-After header, in seconds or as a date (RFC 9110, section
// 10.2.3), for use with Later. It returns at most an hour, and 0 if the value is
// missing or invalid.
func RetryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return max(0, min(time.Duration(seconds)*time.Second, maxRetryAfter))
	}

	if at, err := http.ParseTime(value); err == nil {
		return max(0, min(time.Until(at), maxRetryAfter))
	}

	return 0
}
