#!/usr/bin/perl
# Stands in for vLLM's multi-node start: the first machine waits for the others, then answers; each
# ends when another one is gone, as vLLM's processes do. Only perl-base is needed.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;

$| = 1;
$SIG{TERM} = sub { exit 0 };  # a first process ignores it otherwise
my %given;
my @words = @ARGV;
while (@words) {
    my $word = shift @words;
    if ($word =~ /^--/) { $given{$word} = (@words && $words[0] !~ /^--/) ? shift @words : 1; }
}
my ($rank, $nodes) = @given{qw(--node-rank --nnodes)};
my ($meet, $port) = @given{qw(--master-addr --master-port)};

sub say_ { print "(EngineCore pid=$$) INFO 11-28 10:00:0$_[0] [core.py:1] $_[1]\n"; }

sub gone { print "(EngineCore pid=$$) ERROR 11-28 10:01:00 [core.py:1] EngineDeadError: $_[0]\n"; exit 1; }

say_(0, "Initializing a V1 LLM engine (v0.0.0) with config: model='x'");
if ($rank) {
    my $peer;
    until ($peer) {
        $peer = IO::Socket::INET->new(PeerAddr => $meet, PeerPort => $port, Timeout => 2);
        select(undef, undef, undef, 0.2) unless $peer;
    }
    say_(1, "joined $meet from $ENV{VLLM_HOST_IP} on $ENV{NCCL_SOCKET_IFNAME}");
    sysread($peer, my $byte, 1);
    gone("the first machine is gone");
}
my $door = IO::Socket::INET->new(LocalAddr => $meet, LocalPort => $port, Listen => 8, ReuseAddr => 1)
  or gone("cannot listen on $meet:$port: $!");
my @peers = map { $door->accept } 2 .. $nodes;
say_(2, "all $nodes machines are there");
my $server = IO::Socket::INET->new(
    LocalAddr => $given{"--host"}, LocalPort => $given{"--port"}, Listen => 8, ReuseAddr => 1
) or gone("cannot listen: $!");
print "INFO:     Application startup complete.\n";
my $select = IO::Select->new($server, @peers);
while (my @ready = $select->can_read) {
    for my $one (@ready) {
        gone("a machine is gone") unless $one == $server;
        my $client = $server->accept or next;
        my $request = <$client> // "";
        my $length = 0;
        while (my $line = <$client>) { $length = $1 if $line =~ /^content-length: (\d+)/i; last if $line =~ /^\r?$/; }
        read($client, my $body, $length) if $length;
        my $answer = $request =~ m{/v1/models} ? '{"data": [{"id": "m"}]}'
          : $request =~ m{/chat/} ? '{"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]}'
          : "";
        print $client "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ", length $answer, "\r\n\r\n$answer";
        close $client;
    }
}
