// Package notification notifies users by e-mail, by webhook or in the log. A
// notification is sent at least once, with an id that depends on its message
// alone, so that a receiver recognises a duplicate.
package notification

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Topic carries requests for notifications.
const Topic = "notifications"

// Channel is a way to reach a user.
type Channel string

// Channels.
const (
	Email   Channel = "email"
	Webhook Channel = "webhook"
	Log     Channel = "log"
)

// MailServer is the dependency that e-mails need; see event.Unavailable.
const MailServer = "mail server"

// maxContent is the maximum length of a content in bytes.
const maxContent = 100 << 10

// Requested is a request for a notification.
type Requested struct {
	UserID  string `json:"user_id"`
	Content string `json:"content"`
	// Channel defaults to e-mail.
	Channel Channel `json:"channel,omitempty"`

	// address is the recipient of an e-mail, which Admit looks up.
	address string
}

// Topic implements event.Payload.
func (Requested) Topic() string { return Topic }

// Key implements event.Payload.
func (r Requested) Key() string { return r.UserID }

// Subject implements event.Personal.
func (r Requested) Subject() string { return r.UserID }

// Marks implements event.Personal.
func (Requested) Marks() []string { return nil }

// Validate implements event.Payload.
func (r Requested) Validate() error {
	errs := []error{event.CheckID("user_id", r.UserID)}

	switch {
	case r.Content == "":
		errs = append(errs, errors.New("content: is missing, expected text"))
	case len(r.Content) > maxContent:
		errs = append(errs, fmt.Errorf("content: has %d bytes, expected at most %d", len(r.Content), maxContent))
	}

	switch r.channel() {
	case Email, Webhook, Log:
	default:
		errs = append(errs, fmt.Errorf("channel: is %.500q, expected %s, %s or %s", r.Channel, Email, Webhook, Log))
	}

	return errors.Join(errs...)
}

func (r Requested) channel() Channel { return cmp.Or(r.Channel, Email) }

// Directory returns the e-mail addresses of users by id. The address of an
// erased user is empty; a user who does not exist is missing.
type Directory func(ctx context.Context, db postgres.Querier, ids []string) (map[string]string, error)

// Service sends notifications.
type Service struct {
	retention time.Duration
	pool      *pgxpool.Pool
	directory Directory
	mailer    *mailer  // nil if no mail server is configured
	webhook   *webhook // nil if no URL is configured
	logger    *slog.Logger
}

// NewService returns a service. It does not connect yet.
func NewService(cfg Config, pool *pgxpool.Pool, directory Directory, logger *slog.Logger) (s *Service, err error) {
	s = &Service{retention: cfg.Retention, pool: pool, directory: directory, logger: logger.With(slog.String("component", "notification"))}

	if cfg.Email.Host != "" {
		if s.mailer, err = newMailer(cfg.Email); err != nil {
			return nil, err
		}
	}

	if cfg.Webhook.URL != "" {
		if s.webhook, err = newWebhook(cfg.Webhook); err != nil {
			return nil, err
		}
	}

	return s, nil
}

// Admit looks up the addresses of e-mails. It skips users who were erased and
// rejects users who do not exist.
func (s *Service) Admit(ctx context.Context, db postgres.Querier, events []event.Event[Requested]) ([]error, error) {
	var ids []string

	for _, e := range events {
		if e.Payload.channel() == Email {
			ids = append(ids, e.Payload.UserID)
		}
	}

	verdicts := make([]error, len(events))
	if len(ids) == 0 {
		return verdicts, nil
	}

	addresses, err := s.directory(ctx, db, ids)
	if err != nil {
		return nil, err
	}

	for i := range events {
		p := &events[i].Payload
		if p.channel() != Email {
			continue
		}

		address, known := addresses[p.UserID]

		switch {
		case !known:
			verdicts[i] = event.Reject(fmt.Errorf("user_id: there is no user %s to send an e-mail to", p.UserID))
		case address == "":
			verdicts[i] = event.ErrSkip
		}

		p.address = address
	}

	return verdicts, nil
}

// Needs returns the dependency that sending e needs: e-mails wait together
// while the mail server is unavailable. Other channels need none.
func (s *Service) Needs(e event.Event[Requested]) string {
	if e.Payload.channel() == Email && s.mailer != nil {
		return MailServer
	}

	return ""
}

// anonymous removes the recipient's address and the content from another system's
// answer, because answers are logged and stored, and systems repeat what they are sent.
func (r Requested) anonymous(answer string) string {
	if r.address != "" {
		answer = regexp.MustCompile(`(?i)`+regexp.QuoteMeta(r.address)).ReplaceAllLiteralString(answer, "(address)")
	}

	words := strings.FieldsFunc(r.Content[:min(len(r.Content), maxAnswer)], func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) })
	if len(words) == 0 {
		return answer
	}

	return echoOf(words[:min(len(words), maxEcho)]).ReplaceAllLiteralString(answer, "(content)")
}

// maxEcho is the maximum number of words that anonymous looks for: the expression nests
// twice for each.
const maxEcho = 200

// echoOf returns an expression for a text that begins with words, which may be cut off
// after the second one. Between the words there may be anything that is no word, also as
// JSON escapes it, once or several times.
func echoOf(words []string) *regexp.Regexp {
	const between = `(?:[^\pL\pN]|\\[bfnrt]|\\u[0-9a-f]{4})`

	pattern := ""

	for i := len(words) - 1; i > 0; i-- {
		next := spelled(words[i]) + pattern
		if i == 1 {
			pattern = between + `+` + next
		} else {
			pattern = `(?:` + between + `+(?:` + next + `|[\pL\pN]+$))?` // or the beginning of the word
		}
	}

	return regexp.MustCompile(`(?i)` + spelled(words[0]) + pattern)
}

// spelled returns an expression for a word, as text and as JSON that is ASCII only.
func spelled(word string) string {
	escaped := strings.Trim(strconv.QuoteToASCII(word), `"`)
	if escaped == word {
		return word
	}

	return `(?:` + word + `|` + strings.ReplaceAll(escaped, `\`, `\\+`) + `)`
}

// Send sends one notification and returns the answer of the mail server or the
// webhook's receiver. A temporary failure is an event.LaterError, a final refusal
// is a rejection with the provider's reason, and an unavailable mail server is an
// event.UnavailableError.
func (s *Service) Send(ctx context.Context, e event.Event[Requested]) (answer string, err error) {
	user, id := slog.String("user_id", e.Payload.UserID), slog.String("message_id", e.ID.String())

	switch channel := e.Payload.channel(); {
	case channel == Webhook && s.webhook == nil:
		return "", event.Reject(errors.New("channel: is webhook, but notification.webhook.url is not set"))
	case channel == Webhook:
		return s.webhook.send(ctx, e)
	case channel == Log:
		s.logger.Info("notification", user, id)

		return "logged", nil
	case s.mailer == nil:
		s.logger.Info("e-mail not sent; set notification.email.host to send e-mails", user, id)

		return "logged: notification.email.host is not set", nil
	default:
		return s.mailer.send(ctx, e)
	}
}

// Sent is a notification with the receiver's answer, if it was not skipped.
type Sent = event.Effected[Requested, string]

// Record stores the results of notifications.
func (s *Service) Record(ctx context.Context, tx pgx.Tx, sent []Sent) ([]event.Outgoing, error) {
	_, err := tx.Exec(ctx, `
		INSERT INTO notifications (message_id, user_id, channel, status, answer)
		SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])`,
		postgres.Column(sent, func(n Sent) uuid.UUID { return n.ID }),
		postgres.Column(sent, func(n Sent) string { return n.Payload.UserID }),
		postgres.Column(sent, func(n Sent) string { return string(n.Payload.channel()) }),
		postgres.Column(sent, func(n Sent) string {
			if n.Result == nil {
				return "skipped"
			}

			return "sent"
		}),
		postgres.Column(sent, func(n Sent) string {
			if n.Result == nil {
				return "the user was erased"
			}

			return event.Text(scrub.Text(*n.Result))
		}))
	if err != nil {
		return nil, fmt.Errorf("recording notifications: %w", err)
	}

	return nil, nil
}

// Forget deletes the records of notifications to a user and returns their
// number.
func (s *Service) Forget(ctx context.Context, tx pgx.Tx, userID string, _ bool) (int64, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM notifications WHERE user_id = $1`, userID)
	if err != nil {
		return 0, fmt.Errorf("deleting notifications of user %s: %w", userID, err)
	}

	return tag.RowsAffected(), nil
}

// DeleteExpired deletes expired records and returns their number.
func (s *Service) DeleteExpired(ctx context.Context) (int64, error) {
	return postgres.DeleteExpired(ctx, s.pool, "notifications", "sent_at", s.retention)
}

// Entry is the record of a notification.
type Entry struct {
	MessageID uuid.UUID `json:"message_id"`
	UserID    string    `json:"user_id"`
	Channel   Channel   `json:"channel"`
	Status    string    `json:"status"`
	Answer    string    `json:"answer"`
	SentAt    time.Time `json:"sent_at"`
}

// List returns up to limit notifications, newest first. An empty userID selects
// all users.
func (s *Service) List(ctx context.Context, userID string, limit int) ([]Entry, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Entry], `
		SELECT message_id, user_id, channel, status, answer, sent_at FROM notifications
		WHERE $1 = '' OR user_id = $1 ORDER BY sent_at DESC LIMIT $2`, userID, limit)
	if err != nil {
		return nil, fmt.Errorf("listing notifications: %w", err)
	}

	return list, nil
}

// Count counts the notifications that List lists; see [postgres.CountRows].
func (s *Service) Count(ctx context.Context, userID string) (int, error) {
	return postgres.CountRows(ctx, s.pool, `SELECT FROM notifications WHERE $1 = '' OR user_id = $1`, userID)
}
