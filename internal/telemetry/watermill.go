package telemetry

import (
	"log/slog"

	"github.com/ThreeDotsLabs/watermill"
)

// Watermill returns a logger for Watermill and its pub/subs. It logs their info
// messages, which matter only to their developers, at debug level, and their errors
// at errorLevel.
func Watermill(logger *slog.Logger, errorLevel slog.Level) watermill.LoggerAdapter {
	return untraced{watermill.NewSlogLoggerWithLevelMapping(logger, map[slog.Level]slog.Level{
		slog.LevelInfo:  slog.LevelDebug,
		slog.LevelError: errorLevel,
	})}
}

// untraced drops trace messages. Watermill logs several per message; formatting them
// takes several percent of the service's CPU, and none of our log levels shows them.
type untraced struct{ watermill.LoggerAdapter }

// Trace does nothing.
func (untraced) Trace(string, watermill.LogFields) {}

// With implements watermill.LoggerAdapter.
func (u untraced) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return untraced{u.LoggerAdapter.With(fields)}
}
