// Package line keeps messages in order even though a subscriber delivers them before
// earlier ones have been acknowledged.
//
// The subscriber puts the messages of a key into a [Line]. It delivers one, waits until
// the consumer has called Join for it, and delivers the next. So messages join in the
// order of the key, whichever goroutines carry them, and the consumer may apply several
// in one transaction. A consumer that never calls Join gets one message at a time.
package line

import (
	"context"
	"sync/atomic"
)

// Line is a sequence of messages, each delivered without waiting for the
// acknowledgements of those before it. The first message that is not acknowledged
// breaks the line: the consumer returns all messages that it has not begun to apply, and
// the subscriber delivers them again in a new line.
type Line struct {
	changed        func()
	joined, broken atomic.Bool
}

// New returns an empty line. It calls changed whenever a message has joined or has been
// answered.
func New(changed func()) *Line { return &Line{changed: changed} }

// Context returns the context for the next message of the line. It ends with ctx.
func (l *Line) Context(ctx context.Context) context.Context {
	l.joined.Store(false)

	return member{Context: ctx, line: l}
}

// Joined reports whether the last message that got a context has joined, so that the next
// one may be delivered.
func (l *Line) Joined() bool { return l.joined.Load() }

// Join records that the consumer has put the message at the end of its line.
func (l *Line) Join() {
	l.joined.Store(true)
	l.changed()
}

// Answered tells the subscriber that the consumer has answered a message of the line; see
// Telling. The line may be nil, as that of a message in no line.
func (l *Line) Answered() {
	if l != nil {
		l.changed()
	}
}

// Break makes the consumer return all messages that it has not begun to apply.
func (l *Line) Break() { l.broken.Store(true) }

// Broken reports whether Break has been called.
func (l *Line) Broken() bool { return l.broken.Load() }

// Of returns the line of the message whose context is ctx, or nil.
func Of(ctx context.Context) *Line {
	l, _ := ctx.Value(lineKey{}).(*Line)

	return l
}

type lineKey struct{}

// member is the context of a message in a line.
type member struct {
	context.Context //nolint:containedctx // it is a context

	line *Line
}

// Value implements context.Context.
func (m member) Value(key any) any {
	if _, is := key.(lineKey); is {
		return m.line
	}

	return m.Context.Value(key)
}

// Telling returns a context for a subscription. It says that the consumer calls Answered
// after each answer, so that the subscriber needs no goroutine that waits for it.
func Telling(ctx context.Context) context.Context {
	return context.WithValue(ctx, tellingKey{}, true)
}

// Tells reports whether ctx, or the context that it comes from, is one of Telling.
func Tells(ctx context.Context) bool { return ctx.Value(tellingKey{}) != nil }

type tellingKey struct{}
