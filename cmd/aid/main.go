// Command aid identifies AI agents, evaluates their requests to LLM providers by policy,
// records each decision, and lets Envoy forward what is allowed.
//
//	aid up        everything on this machine, to try it out or for a single host
//	aid control   the control plane: management API, xDS, audit ingest
//	aid extproc   the sidecar beside Envoy that evaluates each request
//	aid migrate   brings the database's schema up to date, before a rollout
//
// Only this package reads flags and the environment, and only this package imports all
// others. It decides the order of shutdown. There is a file for each subcommand, which
// constructs what the subcommand needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main for tests: it returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	var incomplete *incompleteError
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage):
		fmt.Fprintf(errs, "aid: %v\n", err)
		return 2
	case errors.As(err, &incomplete):
		fmt.Fprintf(errs, "aid: %v\n", err)
		return 3
	default:
		fmt.Fprintf(errs, "aid: %v\n", err)
		return 1
	}
}

// usageError is an error in a flag, an argument or a variable.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// incompleteError means that nothing is wrong, but something is still missing.
type incompleteError struct{ err error }

func (e *incompleteError) Error() string { return e.err.Error() }
func (e *incompleteError) Unwrap() error { return e.err }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "aid",
		Short: "Identity, policy and an audit log for AI agents, in front of any LLM provider",
		Long: `aid identifies the AI agent behind each request to an LLM provider, and decides by
policy whether the request is allowed. It records the decision so that it can be
proved later, and only then lets Envoy forward the request.

To begin, start everything on this machine and follow the output:

  aid up --providers providers.yaml

Every flag can also be set as a variable: --api is AID_API, --log-level is AID_LOG_LEVEL.
A flag overrides its variable. Secrets are read from files or variables, never from arguments.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return flagsFromEnv(cmd.Flags(), os.LookupEnv)
		},
	}
	root.PersistentFlags().String("log-level", "info", "lowest level in the log: debug, info, warn, error")
	root.PersistentFlags().String("log-format", "text", "format of the log on stderr: text or json")
	root.SetUsageTemplate(root.UsageTemplate() + "\nEvery flag is also a variable: --log-level is AID_LOG_LEVEL. A flag overrides its variable.\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(upCommand(), controlCommand(), extprocCommand(), migrateCommand(), orgCommand(), nodeCommand(), egressCommand(),
		doctorCommand(), auditCommand(), segmentsCommand(), envoyBootstrapCommand(), keysCommand(), explainCommand(), policyCommand(), versionCommand(), fetchPostgresCommand())
	return root
}

// flagsFromEnv sets each flag that is not on the command line to the value of its variable,
// which is AID_ and the flag's name.
func flagsFromEnv(flags *pflag.FlagSet, lookup func(string) (string, bool)) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		v, ok := lookup(name)
		if !ok || f.Changed || f.Name == "help" || err != nil {
			return
		}
		if e := flags.Set(f.Name, v); e != nil {
			err = usagef("%s (the variable of --%s): %v", name, f.Name, e)
		}
	})
	return err
}

func variable(flag string) string {
	return "AID_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// logger returns the log that cmd's flags configure. Its lines have the name of the process,
// since several processes of `aid up` share one stderr.
func logger(cmd *cobra.Command, process string) (*slog.Logger, error) {
	text, _ := cmd.Flags().GetString("log-level")
	var level slog.Level
	if err := level.UnmarshalText([]byte(text)); err != nil {
		return nil, usagef("--log-level %q: valid values are debug, info, warn and error", text)
	}
	options := &slog.HandlerOptions{Level: level}
	form, _ := cmd.Flags().GetString("log-format")
	var h slog.Handler
	switch form {
	case "text":
		h = slog.NewTextHandler(cmd.ErrOrStderr(), options)
	case "json":
		h = slog.NewJSONHandler(cmd.ErrOrStderr(), options)
	default:
		return nil, usagef("--log-format %q: valid values are text and json", form)
	}
	return slog.New(h).With("process", process), nil
}
