package notification

import (
	"context"
	_ "embed" // the templates
	"errors"
	"fmt"
	"html"
	netmail "net/mail"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/tlsconfig"
)

//go:embed templates/message.txt
var textTemplate string

//go:embed templates/message.html
var htmlTemplate string

// fill puts the subject and the content into a template. The template packages would
// do more than is needed, and keep the linker from dropping unused methods, of which
// stripe-go has many: the program would be a third larger.
func fill(template, subject, content string) string {
	return strings.NewReplacer("{{.Subject}}", subject, "{{.Content}}", content).Replace(template)
}

// smtpTimeout bounds each step of an SMTP session.
const smtpTimeout = 10 * time.Second

// maxSubject is the maximum length of a subject in characters.
const maxSubject = 78 // RFC 5322, section 2.1.1

// mailer sends e-mails over SMTP, each on a connection of its own.
type mailer struct {
	cfg     EmailConfig
	options []mail.Option
	domain  string
}

func newMailer(cfg EmailConfig) (*mailer, error) {
	settings, err := tlsconfig.New(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("notification.email.ca_file: %w", err)
	}

	settings.ServerName = cfg.Host

	options := []mail.Option{mail.WithPort(cfg.Port), mail.WithTimeout(smtpTimeout), mail.WithTLSConfig(settings)}

	switch cfg.TLS {
	case fullTLS:
		options = append(options, mail.WithSSL())
	case startTLS:
		options = append(options, mail.WithTLSPolicy(mail.TLSMandatory))
	default:
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	}

	if cfg.User != "" {
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover),
			mail.WithUsername(cfg.User), mail.WithPassword(string(cfg.Password)))
	}

	from, err := netmail.ParseAddress(cfg.From)
	if err != nil {
		return nil, fmt.Errorf("notification.email.from: %w", err)
	}

	return &mailer{cfg: cfg, options: options, domain: from.Address[strings.LastIndex(from.Address, "@")+1:]}, nil
}

func (m *mailer) send(ctx context.Context, e event.Event[EmailDue]) (answer string, err error) {
	msg, err := m.compose(e)
	if err != nil {
		return "", event.Reject(errors.New(e.Payload.anonymous(err.Error())))
	}

	client, err := mail.NewClient(m.cfg.Host, m.options...)
	if err != nil {
		return "", fmt.Errorf("preparing the connection to the mail server: %w", err)
	}

	if err := client.DialAndSendWithContext(ctx, msg); err != nil {
		// The server accepted the e-mail, even if the connection failed later.
		if msg.IsDelivered() {
			return e.Payload.anonymous(msg.ServerResponse()), nil
		}

		return "", classify(err, e.Payload)
	}

	return e.Payload.anonymous(msg.ServerResponse()), nil
}

// classify distinguishes errors. A server that cannot be reached, refuses the login
// or rejects the sender accepts no e-mail at all: it is unavailable. Once the sender
// has been accepted, errors concern this e-mail: a permanent one rejects it, a
// temporary one postpones it. The e-mail may even have arrived, so it must not be
// retried indefinitely. If there is no answer, the server may also be at fault.
func classify(err error, to EmailDue) error {
	const permanent = 500 // RFC 5321, section 4.2.1

	sendError, connected := errors.AsType[*mail.SendError](err)
	// The library adds the recipient's address at the end.
	text, _, _ := strings.Cut(err.Error(), ", affected ")
	err = errors.New(to.anonymous(text))

	switch {
	case !connected, sendError.Reason == mail.ErrSMTPMailFrom, sendError.Reason == mail.ErrConnCheck:
		return event.Unavailable(MailServer, err)
	case sendError.ErrorCode() >= permanent:
		return event.Reject(fmt.Errorf("the mail server refused the e-mail: %w", err))
	case sendError.ErrorCode() == 0:
		return event.Overloaded(MailServer, 0, fmt.Errorf("sending e-mail: %w", err))
	default:
		return event.Later(0, fmt.Errorf("sending e-mail: %w", err))
	}
}

func (m *mailer) compose(e event.Event[EmailDue]) (*mail.Msg, error) {
	msg := mail.NewMsg()
	// A repeated id marks a duplicate.
	msg.SetMessageIDWithValue(e.ID.String() + "@" + m.domain)
	msg.SetDate()
	msg.Subject(subject(e.Payload.Content))

	if err := msg.From(m.cfg.From); err != nil {
		return nil, fmt.Errorf("addressing e-mail: %w", err)
	}

	if err := msg.To(e.Payload.address); err != nil {
		return nil, fmt.Errorf("addressing e-mail to user %s: %w", e.Payload.UserID, err)
	}

	content := e.Payload.Content
	msg.SetBodyString(mail.TypeTextPlain, fill(textTemplate, subject(content), content))
	msg.AddAlternativeString(mail.TypeTextHTML, fill(htmlTemplate, html.EscapeString(subject(content)), html.EscapeString(content)))

	return msg, nil
}

// subject returns the first line of the content, shortened to maxSubject.
func subject(content string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(content), "\n")
	runes := []rune(strings.TrimSpace(line))

	if len(runes) > maxSubject {
		return string(runes[:maxSubject-3]) + "..."
	}

	return string(runes)
}
