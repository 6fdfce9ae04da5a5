package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/test/oidctest"
)

// withProvider opens a browser on a service at whose provider one can log in.
func withProvider(t *testing.T, opaque bool) (*browser, *oidctest.Provider) {
	t.Helper()

	member := func(role string) oidctest.User {
		return oidctest.User{Audience: "millrace", Life: time.Minute, Claims: map[string]any{"roles": []string{role}}}
	}
	provider := oidctest.Start(t, "", map[string]oidctest.User{"olga": member("operators"), "nobody": member("none")})

	b := open(t, guarded, func(c *config.Config) {
		c.HTTP.OIDC.Issuer, c.HTTP.OIDC.Audience = provider.Issuer, "millrace"
		c.HTTP.OIDC.ClientID, c.HTTP.OIDC.ClientSecret = "millrace", "hunter2"
		c.HTTP.OIDC.Roles = []access.Mapping{{Value: "operators", Role: access.Operator}}
	})
	provider.Register(oidctest.Client{ID: "millrace", Secret: "hunter2", Redirects: []string{"http://" + b.HTTPAddr() + "/console/login/callback"}, Opaque: opaque})

	return b, provider
}

// atProvider logs in as a user at the provider and returns the page of this site to which
// the provider sends the browser.
func (b *browser) atProvider(user, next string) shown {
	b.t.Helper()

	form := b.get("/console/login/provider?next=" + url.QueryEscape(next))
	if !strings.Contains(form.html, "Go on") {
		b.t.Fatalf("the provider shows %d %s", form.status, form.html)
	}

	response, err := b.client.PostForm(form.url.String(), url.Values{"user": {user}, "id": {form.url.Query().Get("id")}}) //nolint:noctx // a local server
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()

	return b.read(response)
}

func TestABrowserLogsInAtTheProvider(t *testing.T) {
	t.Parallel()

	for name, opaque := range map[string]bool{"with an access token that is signed": false, "with an access token that is not": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			b, _ := withProvider(t, opaque)
			b.get("/console/now").has(t, "/console/login/provider?next=%2Fconsole%2Fnow")

			p := b.atProvider("olga", "/console/failures?state=all")
			p.has(t, `content="0; url=/console/failures?state=all"`)
			b.get("/console/now").has(t, "olga (operator)")

			// The code and the cookie serve once.
			if again := b.get(p.url.RequestURI()); again.status != http.StatusUnauthorized {
				t.Errorf("the same log-in again: %d", again.status)
			}
		})
	}
}

func TestALogInAtTheProviderIsRefused(t *testing.T) {
	t.Parallel()

	b, provider := withProvider(t, false)

	if p := b.atProvider("nobody", "/console/now"); p.status != http.StatusForbidden {
		t.Errorf("somebody without a role: %d", p.status)
	} else {
		p.has(t, "Nobody has no role here")
	}

	// Another browser brings the answer to a log-in that this one has begun: somebody wants
	// it to act under his name.
	other := newBrowser(t, b.Service)
	other.client.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.Path, "/console/") {
			return http.ErrUseLastResponse
		}

		return nil
	}
	answer := other.atProvider("olga", "/console/now").header.Get("Location")
	callback, _ := url.Parse(answer)

	b.get("/console/login/provider")

	if p := b.get(callback.RequestURI()); p.status != http.StatusUnauthorized {
		t.Errorf("the answer to another browser: %d", p.status)
	} else {
		p.has(t, "begun in another browser")
	}

	for query, want := range map[string]string{"": "begun in another browser", "?error=access_denied&state=x": "access_denied", "?error=%3Cscript%3E": "&lt;script&gt;"} {
		if p := b.get("/console/login/callback" + query); p.status != http.StatusUnauthorized {
			t.Errorf("%s: %d", query, p.status)
		} else {
			p.has(t, want)
		}
	}

	provider.Register(oidctest.Client{ID: "millrace", Secret: "another", Redirects: []string{"http://" + b.HTTPAddr() + "/console/login/callback"}})

	if p := b.atProvider("olga", "/console/now"); p.status != http.StatusUnauthorized {
		t.Errorf("with a wrong secret: %d", p.status)
	}

	if p := b.get("/console/now"); p.url.Path != "/console/login" {
		t.Errorf("somebody got in: %s", p.url)
	}
}

func TestBrowserLogsInAtTheProvider(t *testing.T) {
	t.Parallel()

	b, _ := withProvider(t, true)

	tab := b.tab()
	tab.Open("/console/consumers")
	tab.Accessible()
	tab.Press("Log in with your account")
	tab.See("User")
	tab.Fill("User", "olga")
	tab.Type(kb.Enter)
	tab.See("olga (operator)", "fulfilment.charge")

	if path := tab.Path(); path != "/console/consumers" {
		t.Errorf("the log-in leads to %s", path)
	}
}
