package access

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Login is a log-in at the provider that a browser has begun: what it must bring back, and
// what must be in the token.
type Login struct{ State, Nonce, Verifier string }

// ErrOtherLogin reports a browser that brought back something else than it left with.
var ErrOtherLogin = errors.New("this log-in was begun in another browser, or too long ago; begin again")

// LogsIn reports whether browsers can log in at the provider.
func (v *Verifier) LogsIn() bool { return v.provider != nil && v.provider.cfg.ClientID != "" }

// BeginLogin returns the address of the provider at which a browser begins to log in. The
// provider sends it back to redirect. The browser must keep the Login, and nobody else may
// know it.
func (v *Verifier) BeginLogin(redirect string) (address string, login Login, err error) {
	client, _, err := v.provider.at(redirect)
	if err != nil {
		return "", login, err
	}

	// Each is 32 random bytes.
	login = Login{State: oauth2.GenerateVerifier(), Nonce: oauth2.GenerateVerifier(), Verifier: oauth2.GenerateVerifier()}

	return client.AuthCodeURL(login.State, oidc.Nonce(login.Nonce), oauth2.S256ChallengeOption(login.Verifier)), login, nil
}

// EndLogin exchanges the code that the provider gave to a browser for a token that Verify
// accepts, and returns it with whom it identifies. It returns ErrOtherLogin if state is not that of the login, and a RefusedError if
// the provider refuses the code or its tokens are not accepted.
func (v *Verifier) EndLogin(ctx context.Context, redirect string, login Login, state, code string) (bearer string, who Identity, err error) {
	if login.State == "" || subtle.ConstantTimeCompare([]byte(login.State), []byte(state)) != 1 {
		return "", who, ErrOtherLogin
	}

	client, found, err := v.provider.at(redirect)
	if err != nil {
		return "", who, err
	}

	ctx = oidc.ClientContext(ctx, v.provider.client)

	tokens, err := client.Exchange(ctx, code, oauth2.VerifierOption(login.Verifier))
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok && refused.ErrorCode != "" {
		return "", who, &RefusedError{Invalid, "the provider refuses the code: " + event.Text(refused.ErrorCode)}
	}

	if err != nil {
		return "", who, fmt.Errorf("contacting the OpenID Connect provider %s: %w", v.provider.cfg.Issuer, err)
	}

	raw, _ := tokens.Extra("id_token").(string)

	id, err := found.Verifier(&oidc.Config{ClientID: v.provider.cfg.ClientID}).Verify(ctx, raw)
	if err != nil {
		return "", who, &RefusedError{Invalid, "the ID token: " + err.Error()}
	}

	if subtle.ConstantTimeCompare([]byte(login.Nonce), []byte(id.Nonce)) != 1 {
		return "", who, &RefusedError{Invalid, "the ID token is for another log-in"}
	}

	return v.session(ctx, tokens.AccessToken, raw)
}

// session returns the token that Verify accepts and that gives a role, or else one that it
// accepts, with whom it identifies: some providers issue access tokens that only they can
// read, others put roles in access tokens alone.
func (v *Verifier) session(ctx context.Context, access, id string) (bearer string, who Identity, err error) {
	var reasons []string

	for _, token := range []struct{ kind, text string }{{"access", access}, {"ID", id}} {
		found, err := v.Verify(ctx, token.text)
		refused, isRefused := errors.AsType[*RefusedError](err)

		switch {
		case isRefused:
			reasons = append(reasons, "the "+token.kind+" token: "+refused.Reason)
		case err != nil:
			return "", who, err
		case found.Role != "":
			return token.text, found, nil
		case bearer == "":
			bearer, who = token.text, found
		}
	}

	if bearer == "" {
		return "", who, &RefusedError{Invalid, strings.Join(reasons, "; ")}
	}

	return bearer, who, nil
}
